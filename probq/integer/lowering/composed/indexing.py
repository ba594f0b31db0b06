"""Lists of indices, windows of unlike sizes and repeated numbers become slices that are joined."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from probq.integer.lowering.operations.data_movement import pad, piece, reshape
from probq.integer.lowering.operations.joining import concat
from probq.integer.lowering.operations.rearranging import MOST_PIECES, taken
from probq.integer.lowering.operations.values import Value, moved, refusal

Shape = tuple[int, ...]


def index(value: Value, where: str, shape: Shape, indices: Sequence[Any]) -> Value:
    """Lower indexing with constant lists of indices, of one axis or of several that stand side by side."""
    places = [axis for axis, given in enumerate(indices) if given is not None]
    if not places or places[0] == 0:
        raise refusal(where, "it takes a part of the batch")
    if any(b != a + 1 for a, b in pairwise(places)):
        raise refusal(where, "its lists of indices stand apart; index one axis after the other")
    if not all(isinstance(indices[axis], Tensor) for axis in places):
        raise refusal(where, "its indices are computed; only constant ones have an integer form")
    first, last = places[0] - 1, places[-1]
    sizes = value.shape[first:last]
    arrays = np.broadcast_arrays(*(indices[axis].numpy() for axis in places))
    flat = np.ravel_multi_index([a % n for a, n in zip(arrays, sizes, strict=True)], sizes).reshape(-1)
    if len(sizes) > 1:
        value = reshape(value, where, (*value.shape[:first], math.prod(sizes), *value.shape[last:]))
    return reshape(taken(value, where, first, flat.tolist()), where, shape)


def index_select(value: Value, where: str, shape: Shape, axis: int, indices: Any) -> Value:
    """Lower `index_select` with constant indices."""
    axes = axis % (len(value.shape) + 1)
    return index(value, where, shape, [*[None] * axes, indices.reshape(-1) if isinstance(indices, Tensor) else indices])


def repeat_interleave(value: Value, where: str, shape: Shape, times: Any, axis: Any = None, **_: Any) -> Value:
    """Lower `repeat_interleave` by one number along an axis."""
    if axis is None or axis % (len(value.shape) + 1) == 0 or not isinstance(times, int):
        raise refusal(
            where, "it repeats the batch, or some numbers more often than others; give one number and an axis"
        )
    inner = axis % (len(value.shape) + 1) - 1
    factors = [1] * inner + [times] + [1] * (len(value.shape) - inner - 1)
    return moved("repeat", value, shape, where, {"factors": factors}, lambda a: a.repeat(times, inner))


def windows(value: Value, where: str, inner: int, count: int, repeated: bool) -> tuple[Value, int]:
    """Return the numbers of the windows that adaptive pooling makes of one axis, one behind the other, and how many.

    Window `i` of `count` is `floor(i n / count) .. ceil((i + 1) n / count)`; shorter ones are filled up.

    Args:
        value: the value.
        where: operation and module, for messages.
        inner: the axis, without the batch.
        count: how many windows.
        repeated: whether their last number fills them up, or zeros.
    """
    size = value.shape[inner]
    ends = window_ends(size, count)
    length = max(stop - start for start, stop in ends)
    if size == count * length:
        return value, length
    if not repeated:
        shape = (*value.shape[:inner], size + 1, *value.shape[inner + 1 :])
        value = pad(value, where, shape, [0, 0] * (len(value.shape) - inner - 1) + [0, 1])
    indices = [
        start + k if start + k < stop else (stop - 1 if repeated else size)
        for start, stop in ends
        for k in range(length)
    ]
    return taken(value, where, inner, indices), length


def window_ends(size: int, count: int) -> list[tuple[int, int]]:
    """Return where each window of adaptive pooling begins and ends.

    >>> window_ends(6, 4)
    [(0, 2), (1, 3), (3, 5), (4, 6)]
    """
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def unfold(
    value: Value, where: str, shape: Shape, kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int],
    stride: Sequence[int],
) -> Value:  # fmt: skip
    """Lower `unfold`, whose columns are the windows of a convolution: a slice for each place in a window, joined."""
    channels, (height, width) = value.shape[0], padding
    sizes = [n + 2 * p for n, p in zip(value.shape[1:], padding, strict=True)]
    if any(padding):
        value = pad(value, where, (channels, *sizes), [width, width, height, height])
    counts = [(n - d * (k - 1) - 1) // s + 1 for n, d, k, s in zip(sizes, dilation, kernel, stride, strict=True)]
    parts = []
    for place in itertools.product(*map(range, kernel)):
        part = value
        for axis, (k, d, s, count) in enumerate(zip(place, dilation, stride, counts, strict=True), 1):
            size = (*part.shape[:axis], count, *part.shape[axis + 1 :])
            part = piece(part, where, size, axis + 1, k * d, k * d + s * (count - 1) + 1, s)
        parts.append(reshape(part, where, (channels, 1, math.prod(counts))))
    if len(parts) > MOST_PIECES:
        raise refusal(where, f"its windows have {len(parts)} places, more than {MOST_PIECES}; take a convolution")
    joined = concat(parts, where, (channels, len(parts), math.prod(counts)), 2) if len(parts) > 1 else parts[0]
    return reshape(joined, where, shape)


INDEXED: Mapping[str, Callable[..., Value]] = MappingProxyType(
    {"index": index, "index_select": index_select, "repeat_interleave": repeat_interleave, "im2col": unfold}
)
