"""Priors over widths give the log-probability of every rung of a ladder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probq.codebooks import Ladder
from probq.utils.errors import ProbqError


@dataclass(frozen=True)
class WidthPrior:
    """A width prior is a law over the rungs of a ladder that knows no data."""

    kind: ClassVar[str] = ""

    def log_weights(self, ladder: Ladder) -> Tensor:
        """Return the logarithms of the rungs' probabilities up to a constant, `[B]` in float64."""
        raise NotImplementedError

    def logits(self, ladder: Ladder) -> Tensor:
        """Return the log-odds of each gate, `[B - 1]` in float64: `log P(above rung k) - log P(rung k)`.

        Raises:
            ProbqError: if the prior does not fit the ladder.
        """
        log_weights = self.log_weights(ladder)
        above = log_weights.flip(0).logcumsumexp(0).flip(0)[1:]
        return above - log_weights[:-1]


@dataclass(frozen=True)
class Geometric(WidthPrior):
    """This prior is `P(width = b) proportional to ratio^b`: every further bit multiplies the probability by `ratio`.

    Args:
        ratio: above 0; below 1 prefers few bits. A code of `b` bits has `2^b` values, so `ratio = 1/2` makes up for
            what a uniform prior over the codes of one weight already takes.

    Raises:
        ProbqError: if the ratio is not positive.

    Example:
        >>> from probq.codebooks import ladder
        >>> Geometric(0.5).log_weights(ladder(1, 2, 4)).exp()
        tensor([0.5000, 0.2500, 0.0625], dtype=torch.float64)
    """

    kind: ClassVar[str] = "geometric"
    ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.ratio < math.inf:
            raise ProbqError(f"Geometric(ratio=...) takes a number above 0, not {self.ratio!r}")

    def log_weights(self, ladder: Ladder) -> Tensor:
        """Return `b log ratio`."""
        return torch.tensor(ladder.bits, dtype=torch.float64) * math.log(self.ratio)


@dataclass(frozen=True)
class Energy(WidthPrior):
    """This prior is `P(rung k) proportional to exp(-beta energy_k)`, from a sensitivity criterion or a cost.

    Args:
        energies: one for each rung, any finite numbers; a sequence or an array.
        beta: inverse temperature, 0 or more.

    Raises:
        ProbqError: if the energies are not finite, or `beta` is negative; later, if they are not one for each rung.

    Example:
        >>> Energy([3.0, 1.0, 0.5]).energies
        (3.0, 1.0, 0.5)
    """

    kind: ClassVar[str] = "energy"
    energies: Sequence[float] = ()
    beta: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "energies", tuple(float(energy) for energy in self.energies))
        if not self.energies or not all(map(math.isfinite, self.energies)):
            raise ProbqError("Energy takes finite energies, one for each rung of the ladder")
        if not 0 <= self.beta < math.inf:
            raise ProbqError(f"Energy(beta=...) takes a number of 0 or more, not {self.beta!r}")

    def log_weights(self, ladder: Ladder) -> Tensor:
        """Return `-beta energy`."""
        if len(self.energies) != len(ladder):
            raise ProbqError(
                f"a prior of {len(self.energies)} energies does not fit a ladder of {len(ladder)} rungs "
                f"({', '.join(map(str, ladder.bits))} bits); give one energy for each rung"
            )
        return -self.beta * torch.tensor(self.energies, dtype=torch.float64)
