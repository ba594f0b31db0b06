"""Signed powers of two make multiplications shifts."""

from __future__ import annotations

from probq.codebooks.codebook import Table
from probq.utils.errors import ProbqError


def powers_of_two(bits: int) -> Table:
    """Return zero and the signed powers of two `+-2^0 .. +-2^(2^(bits-1) - 2)`, `K = 2^bits - 1` levels.

    Args:
        bits: width, 2 to 5 (6 bits would reach `2^30`, beyond any accumulator).

    Raises:
        ProbqError: if the width is not an integer from 2 to 5.

    Source: D. Miyashita, E. H. Lee, B. Murmann, 2016, "Convolutional Neural Networks using Logarithmic Data
    Representation".

    Example:
        >>> powers_of_two(3).levels().tolist()
        [-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0]
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 5:
        raise ProbqError(f"a powers-of-two codebook has an integer width of 2 to 5 bits, not {bits!r}")
    positive = [float(2**k) for k in range(2 ** (bits - 1) - 1)]
    return Table(tuple([-v for v in reversed(positive)] + [0.0] + positive))
