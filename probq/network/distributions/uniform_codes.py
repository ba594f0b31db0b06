"""By default the prior over codes makes every level of a codebook equally probable."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from probq.codebooks.rounding.nearest import Levels, counts, decode
from probq.network.distributions.unbatched_law import UnbatchedLaw


class UniformCodes(UnbatchedLaw):
    """This prior makes every level of a codebook equally probable for every weight.

    Args:
        shape: the shape of the weight; all of it is one event.
        levels: a `Grid`, `BroadcastGrid` or `BroadcastTable` (one for each weight) or ascending levels `[K]`.
        device: where draws are made.

    `gate_term`, zero in value, carries the gradient of the divergence to the gates that drew the codebook.
    """

    def __init__(
        self,
        shape: torch.Size,
        levels: Levels,
        device: torch.device | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.levels, self.device = levels, device
        self.gate_term: Tensor | float = 0.0
        super().__init__(torch.Size(), shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return `- sum over weights of log K`, a scalar; the support is not checked."""
        return value.new_tensor(-self.log_count()) - self.gate_term

    def log_count(self) -> float:
        """Return `sum over weights of log K` in nats."""
        each = counts(self.levels)
        if isinstance(each, Tensor):
            return float(each.double().log().expand(self.event_shape).sum())
        return self.event_shape.numel() * math.log(each)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw independent levels `[*sample_shape, *shape]`."""
        uniform = torch.rand(*sample_shape, *self.event_shape, device=self.device)
        codes = torch.floor(uniform * counts(self.levels)).long()
        flat = codes.reshape(-1, *self.event_shape)
        return torch.stack([decode(part, self.levels)[0] for part in flat]).reshape(codes.shape)
