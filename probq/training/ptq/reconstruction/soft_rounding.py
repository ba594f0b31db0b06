"""Soft rounding places each weight between two neighbouring levels, and ends at one of them."""

from __future__ import annotations

import torch
from torch import Tensor

from probq.codebooks.rounding.nearest import LevelsOfOne, clip_codes, code_levels, counts, first_code

STRETCH = 0.1  # by which the sigmoid is longer than from 0 to 1 on either side
WITHIN = 0.01  # least distance of a start from both ends, where the gradient ends


class SoftRounding:
    """A soft level is `lower + h(v) (upper - lower)` with `h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)`.

    Args:
        u: weights in units of their scale; `h` begins where they lie.
        levels: of the codebook.
        zeros: which weights stay zero, or None.

    Attributes:
        v: learned, shaped like the weight.

    Source: M. Nagel, R. A. Amjad, M. van Baalen, C. Louizos, T. Blankevoort, 2020, "Up or Down? Adaptive Rounding for
    Post-Training Quantization".
    """

    def __init__(self, u: Tensor, levels: LevelsOfOne, zeros: Tensor | None) -> None:
        below = first_code(u, levels, 2)
        above = clip_codes(below + 1, counts(levels) - 1)
        self.lower, self.upper = (code_levels(levels, codes).detach().to(u) for codes in (below, above))
        gap = self.upper - self.lower
        fraction = torch.where(gap > 0, (u - self.lower) / gap.clamp_min(1e-12), 0.5).clamp(WITHIN, 1 - WITHIN)
        self.v = torch.logit((fraction + STRETCH) / (1 + 2 * STRETCH)).detach().requires_grad_()
        self.zeros = zeros

    def h(self) -> Tensor:
        """Return the position between the levels, 0 to 1."""
        return ((1 + 2 * STRETCH) * torch.sigmoid(self.v) - STRETCH).clamp(0, 1)

    def soft(self) -> Tensor:
        """Return the soft levels, with gradients."""
        return self._kept(self.lower + self.h() * (self.upper - self.lower))

    def hard(self) -> Tensor:
        """Return the nearer one of both levels."""
        return self._kept(torch.where(self.h() >= 0.5, self.upper, self.lower)).detach()

    def undecided(self, beta: float) -> Tensor:
        """Return `sum 1 - |2 h - 1|^beta`, the number of weights between levels."""
        return (1 - (2 * self.h() - 1).abs().pow(beta)).sum()

    def _kept(self, levels: Tensor) -> Tensor:
        return levels if self.zeros is None else levels.masked_fill(self.zeros, 0.0)
