"""The codebook of a pruned tensor."""

from __future__ import annotations

from probq.codebooks.codebook import Grid


def pruned() -> Grid:
    """The one level `{0}`, 0 bits.

    Example:
        >>> pruned().bits, pruned().levels().tolist()
        (0, [0.0])
    """
    return Grid(0, 1, 1)
