"""Uniform codebooks have the integers of one width as levels."""

from __future__ import annotations

from probq.codebooks.binary import binary
from probq.codebooks.codebook import Grid
from probq.utils.errors import ProbqError

WIDEST = 16


def uniform(bits: int, signed: bool = True) -> Grid:
    """Return the integers that `bits` bits address.

    Signed codebooks are symmetric, `-(2^(bits-1) - 1) .. 2^(bits-1) - 1`, so that 2 bits are ternary and a product
    of two narrow integers never meets the one asymmetric value; 1 signed bit is binary `{-1, +1}`. Unsigned ones
    are `0 .. 2^bits - 1`.

    Args:
        bits: width, 1 to 16.
        signed: whether negative levels are in the codebook.

    Raises:
        ProbqError: if the width is not an integer from 1 to 16.

    Example:
        >>> uniform(3).levels().tolist(), uniform(2, signed=False).levels().tolist()
        ([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0])
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= WIDEST:
        raise ProbqError(f"a uniform codebook has an integer width of 1 to {WIDEST} bits, not {bits!r}")
    if not signed:
        return Grid(0, 1, 2**bits)
    if bits == 1:
        return binary()
    largest = 2 ** (bits - 1) - 1
    return Grid(-largest, 1, 2 * largest + 1)
