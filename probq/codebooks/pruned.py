"""The codebook of a pruned tensor has one level."""

from __future__ import annotations

from probq.codebooks.codebook import Grid


def pruned() -> Grid:
    """Return the one level `{0}`, 0 bits.

    Example:
        >>> pruned().bits, pruned().levels().tolist()
        (0, [0.0])
    """
    return Grid(0, 1, 1)
