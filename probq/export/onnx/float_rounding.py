"""A requantization may be a float32 product rounded to nearest, half to even; a proof shows that both agree.

Both are monotone step functions of the accumulator, so they agree everywhere if each level starts at the same one.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

WIDEST_MULTIPLIER, WIDEST_SHIFT, WIDEST_ADD = 2**24, 40, 2**60  # float32 holds the first; all sums stay in int64
INT32 = 2**31 - 1


@dataclass(frozen=True)
class IntegerRounding:
    """A rounding is `code = clip(floor((acc multiplier + add) / 2^shift), lo, hi)`.

    It has int64 arrays `[outputs]`, with `multiplier > 0`.
    """

    multiplier: np.ndarray
    add: np.ndarray
    shift: np.ndarray
    lo: int
    hi: int


@dataclass(frozen=True)
class FloatForm:
    """This is `code + zero = clip(round((acc + add) scale) + offset, lo + zero, hi + zero)` in float32.

    The result is saturated to uint8.

    Attributes:
        scale: float32 `[outputs]`.
        add: int64 `[outputs]`.
        zero: what makes all codes non-negative.
        offset: the part of it that is not in `add`.
    """

    scale: np.ndarray
    add: np.ndarray
    zero: int
    offset: int

    def level(self, accumulator: np.ndarray) -> np.ndarray:
        """Return the codes of accumulators `[outputs, ...]` before the clip, as float32 hardware finds them; int64."""
        shape = [-1] + [1] * (accumulator.ndim - 1)
        total = (accumulator + self.add.reshape(shape)).astype(np.float32)
        return np.rint(total * self.scale.reshape(shape)).astype(np.float64).astype(np.int64) + self.offset - self.zero


def float_form(rule: IntegerRounding, low: np.ndarray, high: np.ndarray) -> FloatForm | str:
    """Return the float32 form that gives the rule's code for every accumulator from low to high, or why there is none.

    Scales tried are the multiplier as it is and its neighbours: a tie must go up, to even does not do.

    Args:
        rule: the requantization.
        low: least accumulator of each output, `[outputs]`.
        high: the greatest.
    """
    if _too_wide(rule):
        return "its multiplier, addend or shift takes too many bits"
    zero, failed = max(-rule.lo, 0), ""
    for offset in sorted({0, zero}):
        found = _channels(rule, low, high, zero, offset)
        if isinstance(found, FloatForm):
            return found
        failed = failed or found
    return failed


def _channels(rule: IntegerRounding, low: np.ndarray, high: np.ndarray, zero: int, offset: int) -> FloatForm | str:
    """Return the form with a given offset, each output with the first scale and addend that are right."""
    m, n = rule.multiplier, rule.shift
    centred = rule.add - np.where(n > 0, np.left_shift(1, np.maximum(n, 1) - 1), 0)
    below = (centred + np.left_shift(zero - offset, n)) // m
    exact = np.ldexp(m.astype(np.float64), -n).astype(np.float32)
    scales = [np.nextafter(exact, np.float32(np.inf)), exact, np.nextafter(exact, np.float32(0))]
    found = FloatForm(scales[0], below, zero, offset)
    wrong = misplaced(rule, found, low, high)
    for scale, add in itertools.product(scales, (below, below + 1)):
        if (wrong < 0).all():
            return found
        better = (wrong >= 0) & (misplaced(rule, FloatForm(scale, add, zero, offset), low, high) < 0)
        found = FloatForm(np.where(better, scale, found.scale), np.where(better, add, found.add), zero, offset)
        wrong = np.where(better, -1, wrong)
    if (wrong < 0).all():
        return found
    output = int(np.argmax(wrong >= 0))
    return f"in float32 code {rule.lo + 1 + wrong[output]} of output {output} starts at another accumulator"


def misplaced(rule: IntegerRounding, form: FloatForm, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return for each output how many codes above `lo + 1` the first lies that starts elsewhere, -1 if none does.

    The rule reaches code y from the accumulator `ceil((y 2^n - a) / m)` on: the form must reach it there, and not one
    before.
    """
    wrong = _start_elsewhere(rule, form.level, low, high)
    ends = [end[:, None] + form.add[:, None] for end in (low, high)]
    wrong |= np.maximum(abs(ends[0]), abs(ends[1])) > INT32  # the sum is formed in 32 bits
    return np.where(wrong.any(1), wrong.argmax(1), -1)


def _start_elsewhere(
    rule: IntegerRounding, level: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Return which codes, `[outputs, codes]`, a non-decreasing function reaches from another accumulator on."""
    m, a, n, low, high = (array[:, None] for array in (rule.multiplier, rule.add, rule.shift, low, high))
    codes = np.arange(rule.lo + 1, max(rule.hi, rule.lo + 1) + 1)
    start = np.clip(-((a - np.left_shift(codes, n)) // m), low, high + 1)
    reached = (start > high) | (level(np.minimum(start, high)) >= codes)
    early = (start > low) & (level(np.maximum(start - 1, low)) >= codes)
    return ~reached | early


@dataclass(frozen=True)
class FlooredForm:
    """This is `code = clip(floor(acc scale + add), lo, hi)`, each step in float32; arrays `[outputs]`."""

    scale: np.ndarray
    add: np.ndarray

    def level(self, accumulator: np.ndarray) -> np.ndarray:
        """Return the codes of accumulators `[outputs, ...]` before the clip, as float32 hardware finds them; int64."""
        shape = [-1] + [1] * (accumulator.ndim - 1)
        product = accumulator.astype(np.float32) * self.scale.reshape(shape)
        return np.floor(product + self.add.reshape(shape)).astype(np.float64).astype(np.int64)


def floored_form(rule: IntegerRounding, low: np.ndarray, high: np.ndarray) -> FlooredForm | None:
    """Return the floor in float32 that gives the rule's code for every accumulator from low to high, or None.

    Where codes are few, the product and the sum are often exact, which rounding to nearest is not at ties.
    """
    if _too_wide(rule):
        return None
    scale, add = (np.ldexp(part.astype(np.float64), -rule.shift) for part in (rule.multiplier, rule.add))
    form = FlooredForm(scale.astype(np.float32), add.astype(np.float32))
    return None if _start_elsewhere(rule, form.level, low, high).any() else form


def _too_wide(rule: IntegerRounding) -> bool:
    """Return whether a requantization's numbers are beyond what is tried."""
    m, a, n = rule.multiplier, rule.add, rule.shift
    wide = (m >= WIDEST_MULTIPLIER).any() or (n > WIDEST_SHIFT).any() or (abs(a) >= WIDEST_ADD).any()
    return bool((m <= 0).any() or wide)
