"""Softmax and normalisation of integers are defined here, on int64 along the last axis, with proven error bounds.

Every sum, product and quotient is one of integers below 2^62, so that every language computes the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from probq.utils.errors import ProbqError

LIMIT = 2**62
EXACT = 52  # bits of a number whose highest bit floating point tells


@dataclass(frozen=True)
class Exponentials:
    """The exponential of a distance `d` below the maximum is a product of two table entries, rounded half up.

        e(d) = floor(coarse[min(d div m, last)] fine[d mod m] / 2^bits + 1/2),  m entries of fine

    With the tables of `probq.integer.normalisers.tables`, of 24 bits, it is within 3/2 of `2^24 exp(-d / 1024)`: each
    factor is off by 1/2 at most, and so is the product; for `d = 0` all are exact.

    Args:
        coarse: not negative.
        fine: likewise.
        bits: those of the product that are dropped.
    """

    coarse: np.ndarray
    fine: np.ndarray
    bits: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the exponentials of integers less the maximum along the last axis."""
        high, low = np.divmod(x.max(-1, keepdims=True) - x, len(self.fine))
        product = self.coarse[np.minimum(high, len(self.coarse) - 1)] * self.fine[low]
        return self._rounded(product)

    @property
    def first(self) -> int:
        """Return the exponential of the maximum itself."""
        return int(self._rounded(int(self.coarse[0]) * int(self.fine[0])))

    @property
    def largest(self) -> int:
        """Return a number that no exponential exceeds."""
        return int(self._rounded(int(self.coarse.max()) * int(self.fine.max())))

    def _rounded(self, product: Any) -> Any:
        return product + (1 << self.bits >> 1) >> self.bits

    def check(self) -> None:
        """Raise where a sum of exponentials might not be positive, or a product leave 62 bits.

        Raises:
            ProbqError: saying which.
        """
        if min(self.coarse.min(), self.fine.min()) < 0 or self.first < 1:
            raise ProbqError("tables of exponentials hold no negative number, and that of the maximum is above 0")
        if int(self.coarse.max()) * int(self.fine.max()) >= LIMIT:
            raise ProbqError("products of exponentials must stay below 2^62")


def softmax(x: np.ndarray, e: Exponentials, bits: int) -> np.ndarray:
    """Return `2^bits` times the softmax of integers, rounded half up.

        p_i = floor(2^bits e_i / s + 1/2),  s = sum(e)

    With the tables of `probq.integer.normalisers.tables`, and for `n` numbers `x_i / 1024`, a result is within

        |p_i / 2^bits - softmax(x / 1024)_i| <= 3 (1 + (n - 1) softmax(x / 1024)_i) / 2^25 + 2^-(bits + 1)

    because an exponential is off by 3/2 at most, that of the maximum by nothing, and `s` is 2^24 or more.

    Args:
        x: integers `[..., n]`.
        e: the exponentials.
        bits: binary digits behind the point of what is returned.

    Raises:
        ProbqError: products could leave 62 bits.

    Example:
        >>> from probq.integer.normalisers.tables import coarse, fine
        >>> softmax(np.array([1024, 0]), Exponentials(coarse(), fine(), 24), 15).tolist()
        [23955, 8813]
    """
    check_softmax(x.shape[-1], *_ends(x), e, bits)
    each = e(x)
    total = each.sum(-1, keepdims=True)
    return (each * 2 ** (bits + 1) + total) // (2 * total)


def log_softmax(x: np.ndarray, e: Exponentials, octaves: np.ndarray, logarithms: np.ndarray, factor: int) -> np.ndarray:
    """Return the logarithm of the softmax of integers, in units of `1 / (1024 factor)` where theirs is 1/1024.

        y_i = (x_i - max(x)) factor - octaves[b] - logarithms[floor(s 2^t / 2^b) - 2^t],  2^b <= s < 2^(b + 1)

    `s` is the sum of the exponentials, as in `softmax`, and there are `2^t` logarithms. With the tables of
    `probq.integer.normalisers.tables`, and for `n` numbers `x_i / 1024`, a result is within

        |y_i / 2^12 - log_softmax(x / 1024)_i| <= 3 / 2^12 + n / 2^23

    because both logarithms are rounded, a mantissa is half of `2^-t` from the middle of its bin at most, and `s` is
    within `3 (n - 1) / 2` of `2^24` times its value.

    Args:
        x: integers `[..., n]`.
        e: the exponentials.
        octaves: an entry for each `b`.
        logarithms: `2^t` entries.
        factor: units of the result that one of `x` is worth.

    Raises:
        ProbqError: the sum has no entry, or products could leave 62 bits.
    """
    check_log_softmax(x.shape[-1], *_ends(x), e, (octaves, logarithms), factor)
    total = e(x).sum(-1, keepdims=True)
    highest = np.frexp(total.astype(np.float64))[1].astype(np.int64) - 1  # exact: sums are far below 2^53
    size = len(logarithms)
    mantissa = (total * size >> highest) - size
    return (x - x.max(-1, keepdims=True)) * factor - octaves[highest] - logarithms[mantissa]


def normalise(x: np.ndarray, centred: bool, eps: int, root: int, bits: int) -> np.ndarray:
    """Return `2^bits` times the normalised integers, rounded half up and limited to `2^bits sqrt(n) + 1`.

        d_i = n x_i - sum(x)                                (n x_i where they are not centred)
        v = n sum(x^2) - sum(x)^2                           (n sum(x^2) where they are not centred)
        r = floor(sqrt(4^root v + eps)),  y_i = floor(2^(bits + root) d_i / r + 1/2)

    `d_i / n` is the distance from the mean and `v / n^2` the variance, both exact. For real numbers `step x_i` and
    their `eps'`, with `eps = max(1, round(n^2 4^root eps' / step^2))`, a result is within

        |y_i / 2^bits - z_i| <= 2^-(bits + 1) + 3 |z_i| / r,  z_i = (x_i - mean(x)) / sqrt(var(x) + eps' / step^2)

    because `r` is less than 1 below the root, and `eps` off by 1 at most. Numbers that are all the same give 0.

    Args:
        x: integers `[..., n]`.
        centred: whether the mean is subtracted, as in layer normalisation; else it is that of the root mean square.
        eps: added to the scaled variance, 1 or more.
        root: binary digits behind the point of the root.
        bits: binary digits behind the point of what is returned.

    Raises:
        ProbqError: products could leave 62 bits.

    Example:
        >>> normalise(np.array([-3, -1, 1, 3]), True, 1, 16, 12).tolist()  # 4096 (-3, -1, 1, 3) / sqrt(5)
        [-5495, -1832, 1832, 5495]
    """
    count = x.shape[-1]
    check_normalise(count, *_ends(x), (centred, eps, root, bits))
    mean = x.sum(-1, keepdims=True) if centred else np.zeros((*x.shape[:-1], 1), np.int64)
    distances = count * x - mean
    variance = count * (x * x).sum(-1, keepdims=True) - mean * mean
    r = integer_root((variance << 2 * root) + eps)
    limit = largest(count, bits)
    return (((distances << bits + root + 1) + r) // (2 * r)).clip(-limit, limit)


def integer_root(v: np.ndarray) -> np.ndarray:
    """Return `floor(sqrt(v))` for integers `0 .. 2^62 - 1`.

    The root in float64 is off by less than 1, and integers correct it.
    """
    r = np.sqrt(v.astype(np.float64)).astype(np.int64)
    r -= r * r > v
    r += (r + 1) * (r + 1) <= v
    return r


def largest(count: int, bits: int) -> int:
    """Return the largest magnitude that `normalise` gives, no less than `2^bits sqrt(n)`."""
    return math.isqrt(count << 2 * bits) + 1


def check_softmax(count: int, low: int, high: int, e: Exponentials, bits: int) -> None:
    """Raise where products of a softmax could leave 62 bits.

    Args:
        count: numbers on its axis.
        low: the least of them.
        high: the greatest.
        e: as of `softmax`.
        bits: likewise.

    Raises:
        ProbqError: with how many there are on its axis.
    """
    _check(max(high - low, e.largest * ((2 << bits) + 2 * count)), count)


def check_log_softmax(
    count: int, low: int, high: int, e: Exponentials, tables: tuple[np.ndarray, np.ndarray], factor: int
) -> None:
    """Raise where products of a softmax could leave 62 bits, or its sum could be one without logarithm.

    Args:
        count: numbers on its axis.
        low: the least of them.
        high: the greatest.
        e: as of `log_softmax`.
        tables: octaves and logarithms.
        factor: as of `log_softmax`.

    Raises:
        ProbqError: with how many there are on its axis.
    """
    most = e.largest * count
    if most.bit_length() > min(len(tables[0]), EXACT):
        raise ProbqError(
            f"the sum of {count:,} exponentials may have {most.bit_length()} bits, and there are "
            f"{min(len(tables[0]), EXACT)} octaves; use a shorter axis"
        )
    _check(max((high - low) * factor, most * len(tables[1])), count)


def check_normalise(count: int, low: int, high: int, how: tuple[bool, int, int, int]) -> None:
    """Raise where products of a normalisation could leave 62 bits.

    Args:
        count: numbers on its axis.
        low: the least of them.
        high: the greatest.
        how: centred, eps, root, bits.

    Raises:
        ProbqError: with how many there are on its axis.
    """
    centred, eps, root, bits = how
    size = max(-low, high)
    square = count**2 * (high - low) ** 2 // 4 if centred else (count * size) ** 2
    most = (square << 2 * root) + eps
    distance = count * (high - low if centred else size)
    numerator = (distance << bits + root + 1) + math.isqrt(most) * (2 * largest(count, bits) + 3)
    _check(max(most, (count * size) ** 2, numerator), count)


def _check(most: int, count: int) -> None:
    if most >= LIMIT:
        reached = f"{most:,}" if most < 10**30 else f"10^{len(str(most)) - 1}"
        raise ProbqError(
            f"its integers may reach {reached} on an axis of {count:,}, the limit is {LIMIT - 1:,} (62 bits); "
            "use narrower widths or a shorter axis"
        )


def _ends(x: np.ndarray) -> tuple[int, int]:
    return (int(x.min()), int(x.max())) if x.size else (0, 0)
