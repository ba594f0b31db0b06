"""These operations take numbers apart and put them together in another order: slices, and what joins them again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np

from probq.integer.lowering.operations.data_movement import pad, piece, reshape
from probq.integer.lowering.operations.values import Value, along, moved, refusal

Shape = tuple[int, ...]
MOST_PIECES = 64


def select(value: Value, where: str, shape: Shape, axis: int, index: int) -> Value:
    """Lower `select`, which takes one index of an axis and drops the axis."""
    inner = axis % (len(value.shape) + 1) - 1
    if inner < 0:
        raise refusal(where, "it takes a part of the batch")
    start = index % value.shape[inner]
    apart = (*value.shape[:inner], 1, *value.shape[inner + 1 :])
    return reshape(piece(value, where, apart, inner + 1, start, start + 1), where, shape)


def unbind(value: Value, where: str, shapes: Sequence[Shape], axis: int = 0) -> list[Value]:
    """Lower `unbind`, which selects every index of an axis."""
    return [select(value, where, shape, axis, index) for index, shape in enumerate(shapes)]


def expand(value: Value, where: str, shape: Shape, *_: Any, **__: Any) -> Value:
    """Lower `expand`, which repeats along axes of length 1."""
    if len(shape) != len(value.shape):
        raise refusal(where, "it makes an axis in front of the batch; unsqueeze behind it first")
    factors = [b // a for a, b in zip(value.shape, shape, strict=True)]
    return moved("repeat", value, shape, where, {"factors": factors}, lambda a: np.broadcast_to(a, shape))


def spread(value: Value, where: str, shape: Shape) -> Value:
    """Return a value as it broadcasts to a shape without the batch."""
    if value.shape == shape:
        return value
    return expand(reshape(value, where, (1,) * (len(shape) - len(value.shape)) + value.shape), where, shape)


def taken(value: Value, where: str, inner: int, indices: Sequence[int]) -> Value:
    """Return given indices of one axis, as slices of what ascends step by step that are joined.

    Args:
        value: the value.
        where: operation and module, for messages.
        inner: the axis, without the batch.
        indices: of that axis, 0 or more.
    """
    cuts = [0, *(k for k, (a, b) in enumerate(pairwise(indices), 1) if b != a + 1), len(indices)]
    runs = [(indices[a], indices[b - 1] + 1) for a, b in pairwise(cuts)]
    if len(runs) > MOST_PIECES:
        raise refusal(
            where, f"it takes {len(runs)} pieces apart, more than {MOST_PIECES}; do it outside of the network"
        )

    def sized(size: int) -> Shape:
        return (*value.shape[:inner], size, *value.shape[inner + 1 :])

    parts = [piece(value, where, sized(stop - start), inner + 1, start, stop) for start, stop in runs]
    if len(parts) == 1:
        return parts[0]
    exponent, low, high = (
        along(array, value.shape, lambda a: a.take(indices, inner)) for array in (value.exponent, value.low, value.high)
    )
    shape = sized(len(indices))
    return Value("concat", tuple(parts), shape, where, exponent, value.divisor, low, high, {"axis": inner})


def _inner(value: Value, where: str, axes: Any) -> list[int]:
    listed = axes if isinstance(axes, list | tuple) else [axes]
    inner = [axis % (len(value.shape) + 1) - 1 for axis in listed]
    if min(inner, default=0) < 0:
        raise refusal(where, "it reorders the batch")
    return inner


def flip(value: Value, where: str, shape: Shape, axes: Any) -> Value:
    """Lower `flip`."""
    for inner in _inner(value, where, axes):
        value = taken(value, where, inner, range(value.shape[inner])[::-1])
    return value


def roll(value: Value, where: str, shape: Shape, shifts: Any, axes: Any = ()) -> Value:
    """Lower `roll` along named axes."""
    inner = _inner(value, where, axes)
    if not inner:
        raise refusal(where, "it rolls all numbers as one row, the batch too; name the axes")
    for axis, shift in zip(inner, shifts if isinstance(shifts, list | tuple) else [shifts], strict=True):
        size = value.shape[axis]
        value = taken(value, where, axis, [(k - shift) % size for k in range(size)])
    return value


def tile(value: Value, where: str, shape: Shape, repeats: Sequence[int]) -> Value:
    """Lower `repeat`, which joins copies."""
    if len(repeats) > len(value.shape) + 1 or (len(repeats) == len(value.shape) + 1 and repeats[0] != 1):
        raise refusal(where, "it repeats the batch, or makes an axis in front of it")
    for inner, times in zip(range(len(value.shape))[::-1], repeats[::-1], strict=False):
        value = taken(value, where, inner, list(range(value.shape[inner])) * times)
    return value


def padded_by_itself(
    value: Value, where: str, shape: Shape, ends: Sequence[int], mode: str = "constant", fill: Any = None
) -> Value:
    """Return a value padded by zeros or by its own numbers."""
    modes = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    if mode not in modes:
        return pad(value, where, shape, ends, mode, fill)
    for place, (low, high) in enumerate(zip(ends[::2], ends[1::2], strict=True), 1):
        inner = len(value.shape) - place
        if min(low, high) < 0 or inner < 0:
            raise refusal(where, "it cuts off, or pads the batch")
        own: Any = modes[mode]
        value = taken(value, where, inner, np.pad(np.arange(value.shape[inner]), (low, high), mode=own).tolist())
    return value


def _reordered(value: Value, where: str, shape: Shape, apart: Shape, axes: Sequence[int]) -> Value:
    """Return the value in the shape `apart`, its axes in another order, in a shape of its own."""
    inside = reshape(value, where, apart)
    order = [apart[axis] for axis in axes]
    turned = moved("permute", inside, tuple(order), where, {"axes": list(axes)}, lambda a: a.transpose(axes))
    return reshape(turned, where, shape)


def pixel_shuffle(value: Value, where: str, shape: Shape, factor: int) -> Value:
    """Lower `pixel_shuffle`, which makes of channels the pixels of a larger image."""
    channels, height, width = value.shape
    apart = (channels // factor**2, factor, factor, height, width)
    return _reordered(value, where, shape, apart, (0, 3, 1, 4, 2))


def pixel_unshuffle(value: Value, where: str, shape: Shape, factor: int) -> Value:
    """Lower `pixel_unshuffle`, which makes channels of pixels."""
    channels, height, width = value.shape
    apart = (channels, height // factor, factor, width // factor, factor)
    return _reordered(value, where, shape, apart, (0, 2, 4, 1, 3))


def channel_shuffle(value: Value, where: str, shape: Shape, groups: int) -> Value:
    """Lower `channel_shuffle`, which deals the channels of groups out to all of them."""
    channels, size = value.shape[0], math.prod(value.shape[1:])
    return _reordered(value, where, shape, (groups, channels // groups, size), (1, 0, 2))


REORDERED: Mapping[str, Callable[..., Value]] = MappingProxyType(
    {
        "select": select, "expand": expand, "flip": flip, "roll": roll, "repeat": tile, "tile": tile,
        "fliplr": lambda value, where, shape: flip(value, where, shape, 1),
        "pixel_shuffle": pixel_shuffle, "pixel_unshuffle": pixel_unshuffle, "channel_shuffle": channel_shuffle,
    }
)  # fmt: skip
