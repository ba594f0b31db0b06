"""The binary codebook has two levels."""

from __future__ import annotations

from probq.codebooks.codebook import Grid


def binary() -> Grid:
    """Return the two levels `{-1, +1}`, 1 bit.

    Source: M. Courbariaux, Y. Bengio, J.-P. David, 2015, "BinaryConnect: Training Deep Neural Networks with binary
    weights during propagations".

    Example:
        >>> binary().levels().tolist()
        [-1.0, 1.0]
    """
    return Grid(-1, 2, 2)
