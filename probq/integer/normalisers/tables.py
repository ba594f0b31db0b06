"""Softmax and normalisation in integers have these tables and sizes, in training and in the integer model.

They depend on the length of the axis alone, so that what is trained is what ships.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from functools import cache

import numpy as np

ARGUMENT_BITS, FINE_BITS = 10, 5  # binary digits behind the point of what enters a softmax; those of the fine table
EXPONENTIAL_BITS = 24  # of exponentials
PROBABILITY_BITS = 15  # of probabilities
OUTPUT_BITS = 12  # of logarithms of probabilities, and of normalised numbers
MANTISSA_BITS = 10  # of a sum whose logarithm is looked up
MOST_CLASSES = 2**16  # on the axis of a softmax
MOST_NORMALISED = 2**18  # numbers that one mean and variance are of
WIDEST_ARGUMENT = 22  # bits of what enters a softmax
WIDEST, SQUARES = 18, 60  # bits of what enters a normalisation, of its variance
DIGITS = 40


@cache
def coarse() -> np.ndarray:
    """Return `round(2^24 exp(-k / 32))` for `k = 0, 1, ...`, to the first that is 0; int64.

    Example:
        >>> len(coarse()), coarse()[:3].tolist()
        (556, [16777216, 16261035, 15760736])
    """
    return _exponentials(2 ** (ARGUMENT_BITS - FINE_BITS), until_zero=True)


@cache
def fine() -> np.ndarray:
    """Return `round(2^24 exp(-k / 1024))` for `k = 0 .. 31`, int64."""
    return _exponentials(2**ARGUMENT_BITS, until_zero=False)


def _exponentials(steps: int, until_zero: bool) -> np.ndarray:
    entries = [1 << EXPONENTIAL_BITS]
    with localcontext(prec=DIGITS):
        while entries[-1] if until_zero else len(entries) < 2**FINE_BITS:
            power = (Decimal(-len(entries)) / steps).exp()
            entries.append(_rounded(power * 2**EXPONENTIAL_BITS))
    return _constant(entries)


@cache
def octaves(count: int) -> np.ndarray:
    """Return `round(2^12 ln(2^b / 2^24))` for `b = 0 ..` up to the highest bit of a sum of so many exponentials."""
    highest = (count << EXPONENTIAL_BITS).bit_length() - 1
    with localcontext(prec=DIGITS):
        two = Decimal(2).ln() * 2**OUTPUT_BITS
        return _constant([_rounded(two * (b - EXPONENTIAL_BITS)) for b in range(highest + 1)])


@cache
def logarithms() -> np.ndarray:
    """Return `round(2^12 ln(1 + (j + 1/2) / 2^10))` for the 2^10 mantissas `j`."""
    with localcontext(prec=DIGITS):
        middles = ((1 + (Decimal(j) + Decimal("0.5")) / 2**MANTISSA_BITS) for j in range(2**MANTISSA_BITS))
        return _constant([_rounded(middle.ln() * 2**OUTPUT_BITS) for middle in middles])


def argument_bits(count: int) -> int:
    """Return the bits of numbers of which so many are normalised: 18, or less where the axis is long.

    Example:
        >>> argument_bits(64), argument_bits(2**16)
        (18, 14)
    """
    return min(WIDEST, SQUARES // 2 - _length(count))


def root_bits(count: int) -> int:
    """Return the binary digits behind the point of the root of a variance, as many as 60 bits have room for."""
    return SQUARES // 2 + 1 - _length(count) - argument_bits(count)


def least_square(count: int, eps: float, exponent: int) -> int:
    """Return what is added to the scaled variance of integers in steps of `2^exponent`, 1 or more.

    e = max(1, round(n^2 eps 4^h / 4^exponent))

    Args:
        count: numbers `n` that the variance is of.
        eps: added to the variance of the real numbers.
        exponent: of their step.
    """
    scaled = Fraction(eps) * count**2 * Fraction(4) ** (root_bits(count) - exponent)
    return max(1, int(scaled + Fraction(1, 2)))


def _length(count: int) -> int:
    return max(count - 1, 1).bit_length()


def _rounded(number: Decimal) -> int:
    return int(number.to_integral_value(ROUND_HALF_UP))


def _constant(entries: list[int]) -> np.ndarray:
    """Return an array that nobody can change, since it is shared."""
    table = np.array(entries, np.int64)
    table.flags.writeable = False
    return table
