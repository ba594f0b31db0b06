"""These operations only move numbers: reshaping, padding with zeros, nearest upsampling, slices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from probq.integer.lowering.operations.values import Value, along, moved, refusal

Shape = tuple[int, ...]


def reshape(value: Value, where: str, shape: Shape, *_: Any) -> Value:
    """Lower flatten, view, squeeze and the like: the exported shape says it all."""
    if math.prod(shape) != math.prod(value.shape):
        raise refusal(where, "it mixes the batch with other axes")
    return moved("reshape", value, shape, where, {"shape": list(shape)}, lambda a: a.reshape(shape))


def permute(value: Value, where: str, shape: Shape, axes: Sequence[int]) -> Value:
    """Lower `permute`, where the batch stays first."""
    rank = len(value.shape) + 1
    axes = [axis % rank for axis in axes]
    if axes[0] != 0:
        raise refusal(where, "it moves the batch axis")
    inner = [axis - 1 for axis in axes[1:]]
    return moved("permute", value, shape, where, {"axes": inner}, lambda a: a.transpose(inner))


def transpose(value: Value, where: str, shape: Shape, first: int, second: int) -> Value:
    """Lower `transpose` of two axes."""
    axes = list(range(len(value.shape) + 1))
    axes[first], axes[second] = axes[second], axes[first]
    return permute(value, where, shape, axes)


def upsample(value: Value, where: str, shape: Shape, *given: Any, **named: Any) -> Value:
    """Lower nearest upsampling by whole factors, which repeats every number."""
    inside, outside = value.shape[1:], shape[1:]
    numbers = [n for each in (*given, *named.values()) for n in (each if isinstance(each, list | tuple) else [each])]
    if any(n is not None and n != int(n) for n in numbers) or any(b % a for a, b in zip(inside, outside, strict=True)):
        raise refusal(where, f"sizes {inside} to {outside} are no whole factors; choose a whole scale_factor")
    factors = [b // a for a, b in zip(inside, outside, strict=True)]

    def repeated(array: np.ndarray) -> np.ndarray:
        for axis, factor in enumerate(factors, 1):
            array = array.repeat(factor, axis)
        return array

    return moved("repeat", value, shape, where, {"factors": factors}, repeated)


def pad(value: Value, where: str, shape: Shape, ends: Sequence[int], mode: str = "constant", fill: Any = None) -> Value:
    """Lower constant padding with zeros; where it is negative, it cuts off."""
    if mode != "constant" or fill not in (None, 0):
        raise refusal(where, f"only zeros have an exact integer form, not {fill if mode == 'constant' else mode!r}")
    pairs = [[int(low), int(high)] for low, high in zip(ends[::2], ends[1::2], strict=True)][::-1]
    if len(pairs) > len(value.shape):
        raise refusal(where, "it pads the batch")
    for axis, cuts in enumerate(pairs, len(value.shape) - len(pairs)):
        start, stop = max(-cuts[0], 0), value.shape[axis] - max(-cuts[1], 0)
        if stop - start < value.shape[axis]:
            left = (*value.shape[:axis], stop - start, *value.shape[axis + 1 :])
            value = piece(value, where, left, axis + 1, start, stop)
    pairs = [[max(end, 0) for end in ends] for ends in pairs]
    if not any(map(any, pairs)):
        return value
    outer = [[0, 0]] * (len(value.shape) - len(pairs)) + pairs
    exponent = along(value.exponent, value.shape, lambda a: np.pad(a, outer, mode="edge"))
    low, high = np.minimum(value.low, 0), np.maximum(value.high, 0)
    low, high = (along(a, value.shape, lambda a: np.pad(a, outer)) for a in (low, high))
    return Value("pad", (value,), shape, where, exponent, value.divisor, low, high, {"padding": pairs})


def piece(value: Value, where: str, shape: Shape, axis: int, start: int, stop: int, step: int = 1) -> Value:
    """Return `x[start : stop : step]` along one axis other than the batch."""
    inner = axis % (len(value.shape) + 1) - 1
    if inner < 0:
        raise refusal(where, "it cuts the batch")
    spec = {"axis": inner, "start": start, "stop": stop, "step": step}
    index = (slice(None),) * inner + (slice(start, stop, step),)
    return moved("slice", value, shape, where, spec, lambda a: a[index])


def cut(
    value: Value, where: str, shape: Shape, axis: int = 0, start: Any = None, stop: Any = None, step: int = 1
) -> Value:
    """Lower `slice`: the exported call names one axis; one that takes everything changes nothing."""
    if axis % (len(value.shape) + 1) == 0:
        if start in (None, 0) and (stop is None or stop >= 2**31) and step == 1:
            return value
        raise refusal(where, "it takes a part of the batch")
    size = value.shape[axis % (len(value.shape) + 1) - 1]
    first, last, step = slice(start, stop, step).indices(size)
    if (first, last, step) == (0, size, 1):
        return value
    return piece(value, where, shape, axis, first, last, step)


def parts(value: Value, where: str, shapes: Sequence[Shape], _: Any, axis: int = 0) -> list[Value]:
    """Lower `chunk` and `split` to pieces side by side along one axis."""
    inner = axis % (len(value.shape) + 1) - 1
    ends = np.cumsum([0, *(shape[inner] for shape in shapes)]).tolist()
    return [
        piece(value, where, shape, inner + 1, start, stop)
        for shape, start, stop in zip(shapes, ends[:-1], ends[1:], strict=True)
    ]


MOVES: Mapping[str, Callable[..., Value]] = MappingProxyType(
    {
        "flatten": reshape, "view": reshape, "reshape": reshape, "squeeze": reshape, "unsqueeze": reshape,
        "unflatten": reshape, "_unsafe_view": reshape, "permute": permute, "transpose": transpose,
        "upsample_nearest1d": upsample, "upsample_nearest2d": upsample, "upsample_nearest3d": upsample,
        "_upsample_nearest_exact1d": upsample, "_upsample_nearest_exact2d": upsample,
        "_upsample_nearest_exact3d": upsample,
        "slice": cut,
    }
)  # fmt: skip
