"""Gumbel straight-through is a categorical draw with the gradient of its relaxation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from probq.estimators.estimator import Estimator
from probq.network.distributions.codes import Codes
from probq.utils.errors import ProbqError


@dataclass(frozen=True)
class Gumbel(Estimator):
    """The draw is `w = l_j`, `j = argmax(log q + g)`.

    Its gradient is that of `sum_j softmax((log q + g) / temperature)_j l_j`.

    Args:
        temperature: the temperature of the relaxation, above 0; low ones have less bias and more variance.

    Raises:
        ProbqError: if the temperature is not positive.

    Source: E. Jang, S. Gu, B. Poole, 2017, "Categorical Reparameterization with Gumbel-Softmax".
    """

    temperature: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ProbqError(f"Gumbel(temperature=...) takes a number above 0, not {self.temperature!r}")

    def draw(self, law: Codes) -> Tensor:
        """Draw levels, with the gradient of relaxed ones."""
        levels, log_probs = law.window()
        uniform = torch.rand_like(log_probs).clamp_(1e-7, 1 - 1e-7)
        perturbed = log_probs - torch.log(-torch.log(uniform))
        relaxed = (torch.softmax(perturbed / self.temperature, -1) * levels).sum(-1)
        hard = torch.take_along_dim(levels, perturbed.argmax(-1, keepdim=True), -1).squeeze(-1)
        return law.for_weights(hard.detach() + (relaxed - relaxed.detach()))
