"""A ladder is the codebooks of growing width that one quantizer may choose from."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from probq.codebooks.codebook import Codebook
from probq.codebooks.product import ProductCodebook
from probq.codebooks.pruned import pruned
from probq.codebooks.uniform import uniform
from probq.codebooks.vector import VectorCodebook
from probq.utils.errors import ProbqError


@dataclass(frozen=True)
class Ladder:
    """A ladder has codebooks `rungs` of strictly growing width."""

    rungs: tuple[Codebook, ...]

    def __post_init__(self) -> None:
        if not self.rungs:
            raise ProbqError("a ladder needs at least one rung, for example ladder(2, 4, 8)")
        known = [rung.bits for rung in self.rungs if not rung.needs_row]
        if any(a >= b for a, b in pairwise(known)):
            raise ProbqError(
                f"the widths of a ladder must grow from rung to rung, not {known}: an assignment names a codebook "
                "by its width, so give e.g. powers_of_two(3) beside uniform(4)"
            )

    def __len__(self) -> int:
        return len(self.rungs)

    @property
    def bits(self) -> tuple[float, ...]:
        """Return the width of every rung in bits; whole numbers but for vectors."""
        return tuple(rung.bits for rung in self.rungs)

    @property
    def signed(self) -> bool:
        """Return whether any rung has a negative level."""
        return any(float(rung.levels()[0]) < 0 for rung in self.rungs)

    @property
    def has_vectors(self) -> bool:
        """Return whether a rung has vectors, which are for weights alone."""
        return any(isinstance(rung, VectorCodebook | ProductCodebook) for rung in self.rungs)

    def for_row(self, length: int) -> Ladder:
        """Return the ladder for a weight whose rows have so many numbers.

        Raises:
            ProbqError: if vectors do not fill them, or widths do not grow.
        """
        return Ladder(tuple(rung.for_row(length) for rung in self.rungs))


def ladder(*rungs: int | Codebook, signed: bool = True) -> Ladder:
    """Return the codebooks one quantizer may choose from, narrowest first.

    Args:
        rungs: widths in bits (0 is pruned, 1 to 16 are uniform codebooks) or codebooks.
        signed: whether the uniform codebooks among them have negative levels. Use `False` for inputs that are never
            negative, such as those behind a ReLU.

    Raises:
        ProbqError: if there is no rung, a width is out of range, or the widths do not grow.

    Example:
        >>> ladder(0, 1, 2, 4, 8).bits
        (0, 1, 2, 4, 8)
    """
    for rung in rungs:
        if not isinstance(rung, int | Codebook):
            raise ProbqError(f"a rung is a width in bits or a codebook, not {rung!r}")
    return Ladder(tuple(_codebook(rung, signed) for rung in rungs))


def _codebook(rung: int | Codebook, signed: bool) -> Codebook:
    if isinstance(rung, Codebook):
        return rung
    return pruned() if rung == 0 and not isinstance(rung, bool) else uniform(rung, signed)
