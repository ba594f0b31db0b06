"""Quotients of integers are rounded half up, with numbers below 2^62 on the way."""

import numpy as np

from probq.utils.errors import ProbqError

LIMIT = 2**62


def quotient(x: np.ndarray, d: np.ndarray, up: int, down: int) -> np.ndarray:
    """Return `floor(2^up x / (2^down d) + 1/2)`; a divisor of 0 counts as 1.

    Args:
        x: integers.
        d: integers that broadcast with them.
        up: binary digits that are added to the dividend.
        down: those that are added to the divisor.

    Raises:
        ProbqError: numbers could leave 62 bits.

    Example:
        >>> quotient(np.array([7, -7, 5]), np.array([2, 2, 0]), 0, 0).tolist()
        [4, -3, 5]
    """
    check_quotient(_largest(x), _largest(d), up, down)
    divisor = np.where(d == 0, 1, d) << down
    return ((x << up + 1) * np.sign(divisor) + np.abs(divisor)) // (2 * np.abs(divisor))


def check_quotient(x: int, d: int, up: int, down: int) -> None:
    """Raise where numbers on the way to a quotient could leave 62 bits.

    Args:
        x: the largest magnitude of a dividend.
        d: of a divisor.
        up: as of `quotient`.
        down: likewise.

    Raises:
        ProbqError: with the largest of them.
    """
    most = (x << up + 1) + (max(d, 1) << down + 1)
    if most >= LIMIT:
        raise ProbqError(f"its integers may reach {most:,}, the limit is {LIMIT - 1:,} (62 bits); use narrower widths")


def quotient_ends(x: tuple[int, int], d: tuple[int, int], up: int) -> tuple[int, int]:
    """Return the least and the greatest quotient of integers between these ends.

    Args:
        x: least and greatest dividend.
        d: of divisors.
        up: as of `quotient`.

    Example:
        >>> quotient_ends((-3, 8), (1, 9), 2)
        (-12, 32)
    """
    low, high = min(x[0], 0) << up, max(x[1], 0) << up
    return (low, high) if d[0] >= 0 else (min(low, -high), max(-low, high))


def _largest(x: np.ndarray) -> int:
    return max(-int(x.min()), int(x.max())) if x.size else 0
