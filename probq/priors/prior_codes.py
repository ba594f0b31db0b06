"""The law of codes under a prior has exact probabilities, draws and divergences."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from probq.codebooks.rounding.nearest import Levels, clip_codes, code_indices, decode, nearest_level
from probq.codebooks.rounding.stochastic import log_difference
from probq.priors.nonuniform_codes import NonuniformCodes

FARTHEST = 1e4  # standard deviations; beyond, a cell's probability is no float64 number's logarithm any more


class BeforeRounding(Protocol):
    """This is a law of real numbers with mean 0 and variance 1, and a spike at 0 of codes rounded from them."""

    @property
    def zero(self) -> float:
        """Return the probability of the spike."""

    def log_cdf(self, z: Tensor) -> Tensor:
        """Return the logarithm of the distribution function."""

    def noise(self, shape: torch.Size, device: torch.device | None) -> Tensor:
        """Draw numbers."""


class PriorCodes(NonuniformCodes):
    """This law is `P(l_j) = F((c_j s - centre) / sd) - F((c_{j-1} s - centre) / sd)`, and has its prior's spike at 0.

    Args:
        prior: the law before rounding.
        shape: the shape of the weight.
        levels: as in `Codes`.
        scale: the step `s`, broadcastable to the weight.
        sd: standard deviation, a scalar or broadcastable to the weight.
        centre: 0, or one for each weight.
    """

    def __init__(
        self, prior: BeforeRounding, shape: torch.Size, levels: Levels, scale: Tensor, sd: Tensor, centre: Tensor
    ) -> None:
        self.prior, self.scale, self.sd, self.centre = prior, scale, sd, centre
        super().__init__(shape, levels, sd.device)

    def log_probs(self, levels: Tensor) -> Tensor:
        """Return the log-probability of levels, shaped as the weight or `[*weight, m]`."""
        if levels.dim() > len(self.event_shape):
            return torch.stack([self.log_probs(column) for column in levels.unbind(-1)], -1)
        last = decode(torch.zeros((), dtype=torch.int64, device=levels.device), self.levels)[1]
        codes = clip_codes(code_indices(self.levels, levels.detach()), last)
        here, below, above = (decode(codes + step, self.levels)[0] for step in self._neighbours(codes, last))
        z = [self._standard((here + other) / 2) for other in (below, above)]
        lower = torch.where(codes > 0, z[0], torch.full_like(z[0], -math.inf))
        upper = torch.where(codes < last, z[1], torch.full_like(z[1], math.inf))
        return self._spiked(self._cell(upper, lower), here).to(levels.dtype)

    def _neighbours(self, codes: Tensor, last: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        up = (codes < last).long()
        return torch.zeros_like(codes), -(codes > 0).long(), up

    def _standard(self, bound: Tensor) -> Tensor:
        z = (bound.double() * self.scale.double() - self.centre.double()) / self.sd.double()
        return z.clamp(-FARTHEST, FARTHEST)

    def _cell(self, upper: Tensor, lower: Tensor) -> Tensor:
        """Return `log(F(upper) - F(lower))`; cells with an open end are apart, as an infinite bound has no gradient."""
        inside = lower.isfinite() & upper.isfinite()
        zero = torch.zeros_like(upper)
        width = log_difference(
            torch.where(inside, upper, zero + 1), torch.where(inside, lower, zero), self.prior.log_cdf
        )
        bound = torch.where(upper.isfinite(), upper, torch.where(lower.isfinite(), -lower, zero))
        open_end = torch.where(upper.isfinite() | lower.isfinite(), self.prior.log_cdf(bound), zero)
        return torch.where(inside, width, open_end)

    def _spiked(self, log_slab: Tensor, levels: Tensor) -> Tensor:
        if not self.prior.zero:
            return log_slab
        spike = torch.where(levels == 0, math.log(self.prior.zero), -math.inf).to(log_slab)
        mixed = torch.logaddexp(spike, log_slab + math.log1p(-self.prior.zero))
        return torch.where(self._has_zero(), mixed, log_slab)

    def _has_zero(self) -> Tensor:
        """Return whether 0 is a level, broadcastable to the weight."""
        zero = torch.zeros(self.event_shape, device=self.device)
        return nearest_level(zero, self.levels).detach() == 0

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw independent levels `[*sample_shape, *shape]`, without gradient."""
        with torch.no_grad():
            shape = torch.Size([*sample_shape, *self.event_shape])
            real = self.centre + self.sd * self.prior.noise(shape, self.device)
            levels = torch.stack(
                [nearest_level(part, self.levels) for part in (real / self.scale).reshape(-1, *self.event_shape)]
            ).reshape(shape)
            spiked = (torch.rand(shape, device=self.device) < self.prior.zero) & self._has_zero()
            return torch.where(spiked, torch.zeros_like(levels), levels)
