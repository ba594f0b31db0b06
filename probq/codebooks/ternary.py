"""The ternary codebook has three levels."""

from __future__ import annotations

from probq.codebooks.codebook import Grid


def ternary() -> Grid:
    """Return the three levels `{-1, 0, +1}`, stored in 2 bits.

    Source: F. Li, B. Liu, X. Wang, B. Zhang, J. Yan, 2016, "Ternary Weight Networks".

    Example:
        >>> ternary().levels().tolist()
        [-1.0, 0.0, 1.0]
    """
    return Grid(-1, 1, 3)
