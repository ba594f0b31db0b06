"""Masks that depend on no input become multiplications by 0 or 1 and addends; computed ones choose between values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probq.integer.lowering.composed.comparisons import for_all, inverted, is_truth
from probq.integer.lowering.operations import arithmetic
from probq.integer.lowering.operations.elementwise import is_whole, numbers
from probq.integer.lowering.operations.rearranging import spread
from probq.integer.lowering.operations.values import MOVED, Value, aligned, common, compressed, constant, refusal
from probq.integer.normalisers.tables import ARGUMENT_BITS, WIDEST_ARGUMENT
from probq.network.normalisers.masks import MASKED, is_mask

Shape = tuple[int, ...]
HIDING = -(2.0**14)  # which stands for all numbers that are MASKED or less
LEAST = -(2 ** (WIDEST_ARGUMENT - 1 - ARGUMENT_BITS))  # which a softmax takes


def masked_fill(value: Any, where: str, shape: Shape, mask: Any, fill: Any) -> Value:
    """Return the value with a number in the places where a mask is true."""
    if isinstance(mask, Value) or isinstance(fill, Value):
        return selected(mask, where, shape, fill, value)
    filled, mask = _numbers(fill, where, shape), for_all(mask, where, shape)
    keep, hides = (~mask).double(), (filled <= MASKED) & mask.numpy()
    if not hides.any():
        added = torch.where(mask, torch.from_numpy(filled), 0.0)
        return arithmetic.add(arithmetic.mul(numbers(where, value), where, shape, keep), where, shape, added)
    if (hides != mask.numpy()).any():
        raise refusal(where, "it fills in small numbers and some that hide scores from a softmax; fill in one by one")
    return _cut_off(numbers(where, value), where, shape, mask)


def selected(mask: Any, where: str, shape: Shape, first: Any, second: Any) -> Value:
    """Return the first where a mask is true, and the second elsewhere."""
    if isinstance(mask, Value):
        return _chosen(mask, where, shape, first, second)
    if isinstance(first, Value) and isinstance(second, Value):
        keep = for_all(mask, where, shape).double()
        parts = (
            arithmetic.mul(spread(numbers(where, value), where, shape), where, shape, factor)
            for value, factor in ((first, keep), (second, 1 - keep))
        )
        return arithmetic.add(next(parts), where, shape, next(parts))
    if isinstance(first, Value):
        return masked_fill(first, where, shape, ~mask, second)
    return masked_fill(second, where, shape, mask, first)


def _chosen(mask: Value, where: str, shape: Shape, first: Any, second: Any) -> Value:
    """Return one of two values, or of a value and a constant, or of two constants, by a mask that is computed."""
    if not is_truth(mask):
        raise refusal(where, "its condition is not true or false; compare first, as x != 0")
    if not isinstance(first, Value) and not isinstance(second, Value):
        return _of_constants(mask, where, shape, _numbers(first, where, shape), _numbers(second, where, shape))
    pair = [_beside(one, other, where, shape) for one, other in ((first, second), (second, first))]
    values = common([spread(numbers(where, part), where, shape) for part in pair])
    low, high = np.minimum(*(v.low for v in values)), np.maximum(*(v.high for v in values))
    return Value("where", (mask, *values), shape, where, values[0].exponent, values[0].divisor, low, high)


def _beside(part: Any, other: Any, where: str, shape: Shape) -> Value:
    """Return one of two that are chosen from, which may be a constant."""
    if isinstance(part, Value):
        return part
    held = _numbers(part, where, shape)
    if not (held <= MASKED).all():
        return constant(held, shape, where)
    _check_hidden(numbers(where, other), where)
    return constant(np.array(float(LEAST)), shape, where)


def _of_constants(mask: Value, where: str, shape: Shape, first: np.ndarray, second: np.ndarray) -> Value:
    """Return `second + mask (first - second)`; where both are numbers and one hides, the other is added to it."""
    wide, one, other = spread(mask, where, shape), np.maximum(first, HIDING), np.maximum(second, HIDING)
    if (one > other).all():
        wide, one, other = inverted(wide, where, shape), other, one
    found = arithmetic.mul(wide, where, shape, torch.from_numpy(np.asarray(one - other)))
    return arithmetic.add(found, where, shape, torch.from_numpy(np.asarray(other)))


def _numbers(given: Any, where: str, shape: Shape) -> np.ndarray:
    given = for_all(given, where, shape).detach().double().numpy() if isinstance(given, Tensor) else given
    return np.asarray(given, np.float64)


def mul(first: Any, where: str, shape: Shape, second: Any) -> Value:
    """Return `first * second`, where one may be a truth, and the other a number that a softmax takes for none."""
    for one, other in ((first, second), (second, first)):
        if is_truth(one) and isinstance(other, Value):
            return _chosen(one, where, shape, other, 0.0)
    truth, number = (first, second) if isinstance(first, Value) else (second, first)
    if isinstance(truth, Value) and is_whole(truth) and isinstance(number, int | float) and number <= MASKED:
        if not is_truth(truth):
            raise refusal(where, "its mask may hold more than 0 and 1; give it as bool, or in 64 bits")
        number = HIDING
    return arithmetic.mul(truth, where, shape, number)


def add(first: Any, where: str, shape: Shape, second: Any, alpha: float = 1) -> Value:
    """Return `first + alpha * second`, where one may be a mask of 0 and of numbers that a softmax takes for none."""
    value, mask = (first, second) if isinstance(first, Value) else (second, first)
    if alpha == 1 and is_mask(mask):
        return _cut_off(numbers(where, value), where, shape, for_all(mask != 0, where, shape))
    for one, other in ((first, second), (second, first)):
        if alpha == 1 and isinstance(other, Value) and (hidden := _hiding(one)) is not None:
            return _chosen(hidden, where, shape, -math.inf, other)
    return arithmetic.add(first, where, shape, second, alpha)


def _hiding(value: Any) -> Value | None:
    """Return where a value that is computed is such a number, and 0 elsewhere; None where it is no such mask."""
    if not isinstance(value, Value) or len(value.parents) != 1:
        return None
    (before,) = value.parents
    if value.op == "scaled" and is_truth(before):
        worth = np.ldexp(value.low / value.divisor, value.exponent)
        return before if value.bound and (worth <= MASKED).all() else None
    inner = _hiding(before) if value.op in MOVED else None
    if inner is None:
        return None
    return replace(value, parents=(inner,), exponent=inner.exponent, divisor=1, low=np.array(0), high=np.array(1))


def _check_hidden(value: Value, where: str) -> None:
    """Raise unless numbers beside a mask are so small that what it adds takes them out."""
    worth = np.ldexp(value.high / value.divisor, value.exponent).max()
    if worth + MASKED > LEAST:
        raise refusal(where, f"it masks numbers that may be so large that {MASKED} does not take them out")


def _cut_off(value: Value, where: str, shape: Shape, mask: Tensor) -> Value:
    """Return the value with the least number that a softmax takes where a mask is true.

    The softmax cuts off what is below.
    """
    value = aligned(value, int(value.exponent.min()), value.divisor)
    step = Fraction(2) ** int(value.exponent) / value.divisor
    _check_hidden(value, where)
    hidden = mask.numpy()
    kept = arithmetic.mul(value, where, shape, torch.from_numpy((~hidden).astype(np.float64)))
    least = int(LEAST / step)
    added = compressed(np.where(hidden, least, 0))
    low, high = np.minimum(kept.low, least), np.asarray(kept.high)
    tensors = {"multiplier": np.array(1), "add": added, "shift": np.array(0)}
    limits = {"lo": int(low.min()), "hi": int(high.max())}
    return Value("offset", (kept,), shape, where, kept.exponent, kept.divisor, low, high, limits, tensors)


# Those that take constants besides the operations of `arithmetic`, or in their place.
MASKS: Mapping[str, Callable[..., Value]] = MappingProxyType(
    {
        "masked_fill": masked_fill,
        "masked_fill_": masked_fill,
        "where": selected,
        "add": add,
        "add_": add,
        "mul": mul,
        "mul_": mul,
    }
)
