"""The larger and the smaller of numbers, limits that are tensors, magnitudes and signs become integers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from probq.integer.lowering.composed.indexing import windows
from probq.integer.lowering.operations.arithmetic import add, neg, sub
from probq.integer.lowering.operations.data_movement import permute, reshape
from probq.integer.lowering.operations.elementwise import is_raw, limited, numbers
from probq.integer.lowering.operations.pooling import max_pool
from probq.integer.lowering.operations.values import Value, aligned, clipped, refusal

Shape = tuple[int, ...]


def maximum(first: Any, where: str, shape: Shape, second: Any) -> Value:
    """Return the larger one, `first + relu(second - first)`; of the network's own input and a number, a clip."""
    if _is_number(second):
        return clipped(first, float(second), None, where)
    return add(first, where, shape, clipped(sub(second, where, shape, first), 0.0, None, where))


def minimum(first: Any, where: str, shape: Shape, second: Any) -> Value:
    """Return the smaller one, `first - relu(first - second)`."""
    if _is_number(second):
        return clipped(first, None, float(second), where)
    return sub(first, where, shape, clipped(sub(first, where, shape, second), 0.0, None, where))


def _is_number(given: Any) -> bool:
    return not isinstance(given, Value) and (not isinstance(given, Tensor) or given.numel() == 1)


def clamp(value: Any, where: str, shape: Shape, low: Any = None, high: Any = None) -> Value:
    """Lower `clamp`; its limits may be numbers, constants or computed."""
    if all(limit is None or _is_number(limit) for limit in (low, high)):
        limits = [None if limit is None else float(limit) for limit in (low, high)]
        return clipped(value, limits[0], limits[1], where)
    value = value if low is None else maximum(value, where, shape, low)
    return value if high is None else minimum(value, where, shape, high)


def clamp_max(value: Any, where: str, shape: Shape, high: Any) -> Value:
    """Lower `clamp_max`."""
    return clamp(value, where, shape, None, high)


def absolute(value: Value, where: str, shape: Shape) -> Value:
    """Return `relu(value) + relu(-value)`."""
    low = clipped(neg(value, where, shape), 0.0, None, where)
    return add(clipped(numbers(where, value), 0.0, None, where), where, shape, low)


def sign(value: Value, where: str, shape: Shape) -> Value:
    """Lower `sign`, which is an integer clipped to -1 and 1."""
    value = numbers(where, value)
    if value.divisor != 1:
        raise refusal(where, "its argument is an average, whose sign floating point may miss; take a sum in its place")
    return limited(value, where, -1, 1)


def argmax(value: Value, where: str, shape: Shape, axis: int | None = None, keepdim: bool = False) -> Value:
    """Lower the place of the largest number along an axis other than the batch, the first one where several are."""
    value, rank = numbers(where, value), len(value.shape) + 1
    if axis is None or axis % rank == 0:
        raise refusal(where, "it looks over the batch; name another axis")
    if value.divisor != 1:
        raise refusal(where, "its numbers are averages, equal ones of which floating point may confuse; take sums")
    value = aligned(value, int(value.exponent.min()), 1)
    inner = axis % rank - 1
    apart, high = (*value.shape[:inner], *value.shape[inner + 1 :]), np.array(value.shape[inner] - 1)
    found = Value("argmax", (value,), apart, where, high=high, attributes={"axis": inner})
    return reshape(found, where, shape) if keepdim else found


def argmin(value: Value, where: str, shape: Shape, axis: int | None = None, keepdim: bool = False) -> Value:
    """Lower the place of the least number likewise."""
    return argmax(neg(value, where, value.shape), where, shape, axis, keepdim)


def amax(value: Value, where: str, shape: Shape, axes: Any = (), keepdim: bool = False) -> Value:
    """Lower the largest number over axes other than the batch, as maximum pooling of one row."""
    rank = len(value.shape) + 1
    inner = sorted(axis % rank - 1 for axis in (axes if isinstance(axes, list | tuple) else [axes]))
    if not inner or inner[0] < 0:
        raise refusal(where, "it looks over the batch")
    order = [*(axis for axis in range(rank - 1) if axis not in inner), *inner]
    if order != list(range(rank - 1)):
        value = permute(value, where, tuple(value.shape[axis] for axis in order), [0, *(axis + 1 for axis in order)])
    count = math.prod(value.shape[rank - 1 - len(inner) :])
    rows = reshape(value, where, (math.prod(value.shape) // count, count))
    return reshape(max_pool(rows, where, (rows.shape[0], 1), [count]), where, shape)


def amin(value: Value, where: str, shape: Shape, axes: Any = (), keepdim: bool = False) -> Value:
    """Lower the least number over axes other than the batch."""
    return neg(amax(neg(value, where, value.shape), where, shape, axes, keepdim), where, shape)


def largest(value: Any, where: str, shapes: Any, *given: Any) -> Any:
    """Lower `max`, of two tensors or over one axis; in the latter case there are places too."""
    return _extreme(maximum, (amax, argmax), value, where, shapes, given)


def least(value: Any, where: str, shapes: Any, *given: Any) -> Any:
    """Lower `min` likewise."""
    return _extreme(minimum, (amin, argmin), value, where, shapes, given)


def _extreme(of_two: Any, along: Any, value: Any, where: str, shapes: Any, given: tuple[Any, ...]) -> Any:
    if not given:
        raise refusal(where, "it looks over the batch; name the axes, as amax(x, (1, 2, 3))")
    if isinstance(given[0], bool | int):
        known = not is_raw(value) and value.divisor == 1
        return [part(value, where, shapes[0], *given) for part in along[: 1 + known]]
    return of_two(value, where, shapes[0], given[0])


def adaptive_max_pool(value: Value, where: str, shapes: Any, size: Any) -> list[Value]:
    """Lower adaptive maximum pooling; numbers of windows of unlike sizes are repeated."""
    for inner, out in enumerate(shapes[0][1:], 1):
        value = _pooled(value, where, inner, out)
    return [value]


def _pooled(value: Value, where: str, inner: int, out: int) -> Value:
    taken, length = windows(value, where, inner, out, repeated=True)
    kernel = [1] * (len(value.shape) - 1)
    kernel[inner - 1] = length
    return max_pool(taken, where, (*value.shape[:inner], out, *value.shape[inner + 1 :]), kernel)


def pooled_with_indices(value: Value, where: str, shapes: Any, *given: Any, **named: Any) -> list[Value]:
    """Lower maximum pooling that returns indices as well, which are no value."""
    return [max_pool(value, where, shapes[0], *given, **named)]


# Those that take constants, which may be tensors of the network.
EXTREMA: Mapping[str, Callable[..., Value]] = MappingProxyType(
    {
        "argmax": argmax, "argmin": argmin, "maximum": maximum, "minimum": minimum, "fmax": maximum, "fmin": minimum,
        "clamp": clamp, "clamp_": clamp, "clamp_min": clamp, "clamp_min_": clamp, "clip": clamp, "clip_": clamp,
        "clamp_max": clamp_max, "clamp_max_": clamp_max,
    }
)  # fmt: skip
# Those that may give indices too.
WITH_INDICES: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "max": largest, "min": least, "adaptive_max_pool1d": adaptive_max_pool,
        "adaptive_max_pool2d": adaptive_max_pool, "adaptive_max_pool3d": adaptive_max_pool,
        **{f"max_pool{axes}d_with_indices": pooled_with_indices for axes in (1, 2, 3)},
    }
)  # fmt: skip
