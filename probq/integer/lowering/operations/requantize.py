"""The integers `(multiplier, add, shift)` bring an accumulator to the next tensor's codes, exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probq.utils.errors import ProbqError

MOST_BITS = 62


@dataclass(frozen=True)
class RoundingTarget:
    """A value is rounded to levels `start + step * code` for `code = 0 .. count - 1`, times `2^exponent`."""

    exponent: int
    start: int
    step: int
    count: int

    def code(self, value: float) -> int:
        """Return the code of a real number, ties up, clipped to the codebook."""
        u = value / 2.0**self.exponent
        return int(np.clip(np.floor((u - self.start) / self.step + 0.5), 0, self.count - 1))

    def level(self, code: int, lo: int, hi: int) -> int:
        """Return the level of a code limited to `lo .. hi`."""
        return self.start + self.step * min(max(code, lo), hi)

    @property
    def bits(self) -> int:
        """Return the width in bits."""
        return int(np.ceil(np.log2(self.count)))


@dataclass(frozen=True)
class Requantization:
    """A requantization is `code = clip((x * multiplier + add) >> shift, lo, hi)`; its arrays broadcast to the value."""

    multiplier: np.ndarray
    add: np.ndarray
    shift: np.ndarray


def requantization(
    exponent: np.ndarray, divisor: int, bound: int, target: RoundingTarget, factor: np.ndarray | int = 1
) -> Requantization:
    """Return the integers that map `x`, worth `x * factor * 2^exponent / divisor`, to codes, exact for `|x| <= bound`.

        code = floor(x * factor * 2^(exponent - target.exponent) / (divisor * step) + 1/2 - start / step)

    Args:
        exponent: the exponent of the accumulator's step, integers of any shape.
        divisor: the divisor of the accumulator's step, 1 or more.
        bound: greatest `|x|`.
        target: the codebook.
        factor: positive integers that broadcast with the exponents.

    Raises:
        ProbqError: if the integers would not fit 62 bits.
    """
    exponents, factors = np.broadcast_arrays(exponent, factor)
    pairs = zip(exponents.reshape(-1), factors.reshape(-1), strict=True)
    parts = [_scaled(int(e), divisor, bound, target, int(f)) for e, f in pairs]
    arrays = (np.array(column, dtype=np.int64).reshape(exponents.shape) for column in zip(*parts, strict=True))
    return Requantization(*arrays)


def in_two_steps(
    exponent: np.ndarray, divisor: int, bound: int, target: RoundingTarget
) -> tuple[Requantization, Requantization]:
    """Return two requantizations in place of one, whose product would not fit 62 bits: a shift, then a division.

    With `s = target.exponent + log2(step) - exponent >= 1` and `t = 1 - 2 start / step`

        floor(x / (2^s divisor) + t / 2) = floor(((x + t 2^(s - 1) divisor) >> s) / divisor)

    Args:
        exponent: as in `requantization`.
        divisor: as in `requantization`.
        bound: as in `requantization`.
        target: the codebook.

    Raises:
        ProbqError: if the steps are too fine for a shift, or the integers would still not fit 62 bits.
    """
    shift = target.exponent + (target.step.bit_length() - 1) - np.asarray(exponent)
    twice = _twice(target)
    if int(shift.min()) < 1 or bound + (abs(twice) * divisor << int(shift.max())) >= 2**MOST_BITS:
        raise _too_wide()
    add = twice * divisor * np.left_shift(1, shift - 1)
    left = max(int((((end * bound + add) >> shift) * end).max()) for end in (-1, 1))
    multiplier, constant, bits = _by_division(0, divisor, left, 0, target.count)
    first = Requantization(np.ones_like(shift), add, shift)
    return first, Requantization(*(np.array(number) for number in (multiplier, constant, bits)))


def _scaled(exponent: int, divisor: int, bound: int, target: RoundingTarget, factor: int) -> tuple[int, int, int]:
    """Return the integers for `x * factor`.

    The factor is taken into the multiplier, its powers of two into the exponent.
    """
    twos = (factor & -factor).bit_length() - 1
    odd = factor >> twos
    multiplier, add, shift = _one(exponent + twos, divisor, bound * odd, target)
    return multiplier * odd, add, shift


def _one(exponent: int, divisor: int, bound: int, target: RoundingTarget) -> tuple[int, int, int]:
    twice = _twice(target)
    shift = target.exponent + (target.step.bit_length() - 1) - exponent
    largest = max(bound, 1).bit_length()
    if divisor == 1:
        if shift <= 0:
            scale = 2 ** min(-shift, MOST_BITS - largest - 1)
            return _fitting(
                scale if twice % 2 == 0 else 2 * scale, *((twice // 2, 0) if twice % 2 == 0 else (twice, 1)), bound
            )
        shift = min(shift, max(largest + 3, 1))
        return _fitting(1, twice * 2 ** (shift - 1), shift, bound)
    return _by_division(shift, divisor, bound, twice, target.count)


def _twice(target: RoundingTarget) -> int:
    """Return twice the constant `1/2 - start / step`, an integer: the step is 1, or 2 with an odd start."""
    if target.step & (target.step - 1) or (target.step - 2 * target.start) % target.step:
        raise ProbqError("only codebooks with steps of 1 or 2 can be reached by an integer shift")
    return (target.step - 2 * target.start) // target.step


def _by_division(shift: int, divisor: int, bound: int, twice: int, count: int) -> tuple[int, int, int]:
    """Return `floor(x / (2^shift * divisor) + twice / 2)` as one multiplication, by the smallest one that is exact.

    With `D = 2^shift * divisor` and `m = (2^n + e) / D` the product exceeds `2^n x / D` by `e x / D`. The constant
    `c = ceil(e * max|x| / D)` makes that an excess of 0 to `2 c`. Distinct results lie `1 / D` apart, or half of that,
    so an excess below `2^n` times their distance leaves the floor as it is. It need not be so for an `x` so large that
    its code, which ascends with `x`, is cut off.
    """
    before = 2 ** max(-shift, 0)
    denominator = divisor * 2 ** max(min(shift, bound.bit_length() + 3), 0)
    finest = denominator if twice % 2 == 0 or denominator % 2 == 0 else 2 * denominator
    reach = min(bound, -(-(count + abs(twice)) * denominator // before))
    n = 1
    while True:
        multiplier = -(-before * 2**n // denominator)
        constant = -(-(multiplier * denominator - before * 2**n) * reach // denominator)
        if 2 * constant * finest < 2**n:
            return _fitting(multiplier, twice * 2 ** (n - 1) + constant, n, bound)
        n += 1


def _fitting(multiplier: int, add: int, shift: int, bound: int) -> tuple[int, int, int]:
    if abs(multiplier) * bound + abs(add) >= 2**MOST_BITS:
        raise _too_wide()
    return multiplier, add, shift


def _too_wide() -> ProbqError:
    return ProbqError("the requantization needs integers beyond 62 bits; use narrower widths or a smaller average")
