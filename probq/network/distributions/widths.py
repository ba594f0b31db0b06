"""The distribution of a width is that of a chain of gates."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class Widths(TorchDistribution):
    """The width is the number of leading open gates of a chain (stick breaking).

    With gate probabilities `p_k = sigmoid(logits_k)`,

        P(width = b_k) = p_1 ... p_k (1 - p_{k+1}),    k = 0 .. B - 1,   p_B = 0.

    A draw is a one-hot vector over the `B` rungs. Its forward value is hard; its gradient is that of relaxed Bernoulli
    gates at `temperature`.

    Args:
        logits: log-odds of each gate, shape `[..., B - 1]`.
        temperature: the temperature of the gates' relaxation, above 0. It changes gradients only, never a drawn value.

    Source: E. Jang, S. Gu, B. Poole, 2017, "Categorical Reparameterization with Gumbel-Softmax" (relaxed Bernoulli,
    straight-through).

    Example:
        >>> Widths(torch.tensor([0.0, 0.0])).probs
        tensor([0.5000, 0.2500, 0.2500])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real_vector}
    support = constraints.one_hot
    has_rsample = True

    def __init__(self, logits: Tensor, temperature: float = 0.5, validate_args: bool | None = None) -> None:
        self.logits, self.temperature = logits, temperature
        super().__init__(logits.shape[:-1], torch.Size([logits.shape[-1] + 1]), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Widths:
        """Return the same law for a larger batch."""
        return Widths(self.logits.expand(*batch_shape, self.logits.shape[-1]), self.temperature, validate_args=False)

    @property
    def log_probs(self) -> Tensor:
        """Return the log-probability of each rung, shape `[..., B]`."""
        reached = F.pad(F.logsigmoid(self.logits).cumsum(-1), (1, 0))
        return reached + F.pad(F.logsigmoid(-self.logits), (0, 1))

    @property
    def probs(self) -> Tensor:
        """Return the probability of each rung, shape `[..., B]`."""
        return self.log_probs.exp()

    @property
    def mean(self) -> Tensor:
        """Return the mean of the one-hot vector, which is `probs`."""
        return self.probs

    @property
    def mode(self) -> Tensor:
        """Return the one-hot vector of the most probable rung, the narrowest of equally probable ones."""
        return F.one_hot(self.log_probs.argmax(-1), self.event_shape[0]).to(self.logits.dtype)

    def entropy(self) -> Tensor:
        """Return the entropy in nats, shape `[...]`."""
        log_probs = self.log_probs
        return -(log_probs.exp() * log_probs).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of one-hot draws `[..., B]`."""
        return (value * self.log_probs).sum(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw one-hot vectors `[*sample_shape, ..., B]`, hard forward, relaxed backward."""
        logits = self.logits.expand(*sample_shape, *self.logits.shape)
        uniform = torch.rand_like(logits).clamp_(1e-7, 1 - 1e-7)
        relaxed = torch.sigmoid((logits + torch.logit(uniform)) / self.temperature)
        gates = (relaxed.detach() > 0.5).to(relaxed.dtype) + (relaxed - relaxed.detach())
        return _break_stick(gates)


def _break_stick(gates: Tensor) -> Tensor:
    """Return the one-hot rung `[..., B]` of gates `[..., B - 1]`, the number of leading open ones."""
    reached, parts = gates.new_ones(gates.shape[:-1]), []
    for gate in gates.unbind(-1):
        parts.append(reached * (1 - gate))
        reached = reached * gate
    return torch.stack([*parts, reached], -1)
