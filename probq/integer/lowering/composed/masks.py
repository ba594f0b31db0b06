"""Masks that depend on no input become multiplications by 0 or 1 and addends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probq.integer.lowering.operations import arithmetic
from probq.integer.lowering.operations.elementwise import numbers
from probq.integer.lowering.operations.values import Value, aligned, compressed, refusal
from probq.integer.normalisers.tables import ARGUMENT_BITS, WIDEST_ARGUMENT
from probq.network.tracing.call_finder import MASKED, is_mask

Shape = tuple[int, ...]
LEAST = -(2 ** (WIDEST_ARGUMENT - 1 - ARGUMENT_BITS))  # which a softmax takes


def masked_fill(value: Any, where: str, shape: Shape, mask: Any, fill: Any) -> Value:
    """Return the value with a number in the places where a mask is true."""
    if not isinstance(value, Value) or not isinstance(mask, Tensor) or isinstance(fill, Value):
        raise refusal(where, "its mask or what it fills in is computed; masks must depend on no input")
    number, mask = float(fill), _for_all(mask, where, shape)
    keep = (~mask).double()
    if number > MASKED:
        kept = arithmetic.mul(numbers(where, value), where, shape, keep)
        return arithmetic.add(kept, where, shape, (1 - keep) * number)
    return _cut_off(numbers(where, value), where, shape, mask)


def selected(mask: Any, where: str, shape: Shape, first: Any, second: Any) -> Value:
    """Return the first where a mask is true, and the second elsewhere, one of them a number."""
    if not isinstance(mask, Tensor):
        raise refusal(where, "its condition is computed; masks must depend on no input")
    if isinstance(first, Value) and not isinstance(second, Value):
        return masked_fill(first, where, shape, ~mask, second)
    return masked_fill(second, where, shape, mask, first)


def add(first: Any, where: str, shape: Shape, second: Any, alpha: float = 1) -> Value:
    """Return `first + alpha * second`, where one may be a mask of 0 and of numbers that a softmax takes for none."""
    value, mask = (first, second) if isinstance(first, Value) else (second, first)
    if alpha == 1 and is_mask(mask):
        return _cut_off(numbers(where, value), where, shape, _for_all(mask != 0, where, shape))
    return arithmetic.add(first, where, shape, second, alpha)


def _for_all(mask: Tensor, where: str, shape: Shape) -> Tensor:
    """Return a mask without its batch axis, if it has one, along which it must be constant."""
    if mask.dim() <= len(shape):
        return mask
    if not torch.equal(mask, mask[:1].expand_as(mask)):
        raise refusal(where, "its mask is another one for each example")
    return mask[0]


def _cut_off(value: Value, where: str, shape: Shape, mask: Tensor) -> Value:
    """Return the value with the least number that a softmax takes where a mask is true.

    The softmax cuts off what is below.
    """
    value = aligned(value, int(value.exponent.min()), value.divisor)
    step = Fraction(2) ** int(value.exponent) / value.divisor
    if value.high.max() * step + Fraction(MASKED) > LEAST:
        raise refusal(where, f"it masks numbers that may be so large that {MASKED} does not take them out")
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
    {"masked_fill": masked_fill, "masked_fill_": masked_fill, "where": selected, "add": add, "add_": add}
)
