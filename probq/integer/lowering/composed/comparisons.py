"""Comparisons, and what holds of several of them, become integers that are 1 where they are true and 0 elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probq.integer.lowering.operations.arithmetic import add, neg, rsub, sub
from probq.integer.lowering.operations.elementwise import is_whole, limited, numbers
from probq.integer.lowering.operations.rearranging import spread
from probq.integer.lowering.operations.values import Value, aligned, compressed, refusal

Shape = tuple[int, ...]


def is_truth(value: Any) -> bool:
    """Return whether all of a value's integers are 0 or 1, and worth that."""
    return isinstance(value, Value) and is_whole(value) and int(value.low.min()) >= 0 and int(value.high.max()) <= 1


def inverted(value: Any, where: str, shape: Shape) -> Value:
    """Return 1 where a value is 0, and 0 where it is 1."""
    return rsub(_truth(value, where), where, shape, 1.0)


def both(first: Any, where: str, shape: Shape, second: Any) -> Value:
    """Return 1 where both are, `max(first + second - 1, 0)`."""
    return limited(add(_sum(first, second, where, shape), where, shape, -1.0), where, 0, 1)


def either(first: Any, where: str, shape: Shape, second: Any) -> Value:
    """Return 1 where one of both is, `min(first + second, 1)`."""
    return limited(_sum(first, second, where, shape), where, 0, 1)


def greater(first: Any, where: str, shape: Shape, second: Any) -> Value:
    """Return 1 where the first is greater than the second."""
    return _beyond(first, second, where, shape, strictly=True)


def at_least(first: Any, where: str, shape: Shape, second: Any) -> Value:
    """Return 1 where the first is the second, or greater."""
    return _beyond(first, second, where, shape, strictly=False)


def unequal(first: Any, where: str, shape: Shape, second: Any) -> Value:
    """Return 1 where the first is not the second."""
    return either(greater(first, where, shape, second), where, shape, greater(second, where, shape, first))


def for_all(constant: Tensor, where: str, shape: Shape) -> Tensor:
    """Return a constant without its batch axis, if it has one, along which it must be the same."""
    if constant.dim() <= len(shape):
        return constant
    if not torch.equal(constant, constant[:1].expand_as(constant)):
        raise refusal(where, "its mask is another one for each example")
    return constant[0]


def _truth(value: Any, where: str) -> Value:
    if not is_truth(value):
        raise refusal(where, "it takes what is true or false alone; compare first, as x != 0")
    found: Value = value
    return found


def _sum(first: Any, second: Any, where: str, shape: Shape) -> Value:
    given = [
        spread(_truth(each, where), where, shape) if isinstance(each, Value) else for_all(each, where, shape).bool()
        for each in (first, second)
    ]
    return add(given[0], where, shape, given[1])


def _beyond(first: Any, second: Any, where: str, shape: Shape, strictly: bool) -> Value:
    """Return 1 where `first > second`, or `>=`: an integer is compared with the next one below what it is held against.

    x > c  if  x >= floor(c) + 1,  and  x >= c  if  x >= ceil(c)
    """
    if isinstance(first, Value) and isinstance(second, Value):
        value, limit = sub(first, where, shape, second), np.zeros(())
    elif isinstance(first, Value):
        value, limit = numbers(where, first), _array(second, where, shape)
    else:
        value, limit = neg(second, where, second.shape), -_array(first, where, shape)
    if value.divisor != 1:
        raise refusal(where, "it compares an average, which floating point may miss; compare a sum")
    value = spread(aligned(value, int(value.exponent.min()), 1), where, shape)
    units = np.ldexp(limit, -int(value.exponent))
    least = np.floor(units) if strictly else np.ceil(units) - 1
    least = least.clip(int(value.low.min()) - 1, int(value.high.max())).astype(np.int64)
    low, high = value.low - least, value.high - least
    tensors = {"multiplier": np.array(1), "add": compressed(-least), "shift": np.array(0)}
    limits = {"lo": int(low.min()), "hi": int(high.max())}
    away = Value("offset", (value,), shape, where, np.zeros((), np.int64), 1, low, high, limits, tensors)
    return limited(away, where, 0, 1)


def _array(constant: Any, where: str, shape: Shape) -> np.ndarray:
    if isinstance(constant, Tensor):
        constant = for_all(constant, where, shape).detach().double().numpy()
    found = np.asarray(constant, np.float64)
    if np.isnan(found).any():
        raise refusal(where, "it compares with what is no number")
    return found


def _turned(function: Callable[..., Value]) -> Callable[..., Value]:
    """Return a comparison of the second with the first."""
    return lambda first, where, shape, second: function(second, where, shape, first)


def _not(function: Callable[..., Value]) -> Callable[..., Value]:
    """Return what holds where a comparison does not."""
    return lambda first, where, shape, second: inverted(function(first, where, shape, second), where, shape)


# Those that take constants, which may be tensors of the network, and give what is true or false.
COMPARISONS: Mapping[str, Callable[..., Value]] = MappingProxyType(
    {
        "gt": greater, "greater": greater, "ge": at_least, "greater_equal": at_least,
        "lt": _turned(greater), "less": _turned(greater), "le": _turned(at_least), "less_equal": _turned(at_least),
        "ne": unequal, "not_equal": unequal, "eq": _not(unequal),
        "logical_not": inverted, "bitwise_not": inverted,
        **dict.fromkeys(("logical_and", "bitwise_and", "__and__"), both),
        **dict.fromkeys(("logical_or", "bitwise_or", "__or__"), either),
    }
)  # fmt: skip
