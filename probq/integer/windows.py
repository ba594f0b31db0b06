"""A kernel moves over the last axes of an array: sizes, padding, unfolding and pooling (numpy only)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from probq.utils.errors import ProbqError

MOST_CHECKED = 2**20  # windows before the input; more are in no model that fits into memory
MOST_TAPS = 64  # passes over all windows; larger ones are joined one by one


def span(length: int, kernel: int, stride: int, dilation: int) -> int:
    """Return the positions of a kernel on padded elements, `floor((length - dilation (kernel - 1) - 1) / stride) + 1`.

    >>> span(28, 5, 2, 1)
    12

    Raises:
        ProbqError: the kernel is longer than the elements.
    """
    free = length - dilation * (kernel - 1) - 1
    if free < 0:
        raise ProbqError(f"a kernel of {kernel} (dilation {dilation}) is longer than the {length} padded elements")
    return free // stride + 1


def ceil_size(length: int, padding: Sequence[int], kernel: int, stride: int, dilation: int) -> int:
    """Return the number of positions where a last, incomplete window counts too, unless it starts beyond the input.

    >>> ceil_size(6, [0, 0], 3, 2, 1), span(6, 3, 2, 1)
    (3, 2)
    """
    size = -(-(length + sum(padding) - dilation * (kernel - 1) - 1) // stride) + 1
    return size - ((size - 1) * stride >= length + padding[0])


def blind(length: int, low: int, size: int, kernel: int, stride: int, dilation: int) -> bool:
    """Return whether one of `size` windows sees only padding.

    The first of them starts `low` elements before the input.

    >>> blind(1, 1, 1, 2, 2, 2), blind(2, 1, 2, 2, 1, 1)
    (True, False)
    """
    if low > dilation * (kernel - 1) or (size - 1) * stride - low >= length:
        return True
    start = np.arange(min(size, -(-low // stride), MOST_CHECKED)) * stride - low
    first = -(start // dilation)  # the first tap that is not in front of the input
    return bool(((first >= kernel) | (start + dilation * first >= length)).any())


def pad(x: np.ndarray, padding: Sequence[Sequence[int]], fill: int) -> np.ndarray:
    """Return the value with its last axes widened by a pair [low, high] of elements each; negative numbers cut off.

    Raises:
        ProbqError: there are more pairs than axes after the batch.
    """
    first = x.ndim - len(padding)
    if first < 1:
        raise ProbqError(f"padding for {len(padding)} axes of a value with {x.ndim - 1}")
    if not any(end for pair in padding for end in pair):
        return x
    ends = [(max(low, 0), max(high, 0)) for low, high in padding]
    x = np.pad(x, [(0, 0)] * first + ends, constant_values=fill)
    ends = [(max(-low, 0), max(n - max(-high, 0), 0)) for (low, high), n in zip(padding, x.shape[first:], strict=True)]
    return _take(x, [slice(*pair) for pair in ends])


def _take(x: np.ndarray, last: Sequence[slice]) -> np.ndarray:
    index: tuple[Any, ...] = (..., *last)
    return x[index]


def columns(x: np.ndarray, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> np.ndarray:
    """Return every window of a padded value `[batch, channels, *in]`, contiguous `[batch, channels, *kernel, *out]`."""
    spatial = len(kernel)
    window = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    view = sliding_window_view(x, window, axis=tuple(range(2, 2 + spatial)))
    view = _take(view, [slice(None, None, step) for step in (*stride, *dilation)])
    return np.ascontiguousarray(view.transpose(0, 1, *range(2 + spatial, 2 + 2 * spatial), *range(2, 2 + spatial)))


def pool(
    x: np.ndarray,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    join: np.ufunc,
) -> np.ndarray:
    """Return `join` (numpy.add, numpy.maximum) of a padded value over windows of its last axes, one axis at a time."""
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), x.ndim - len(kernel)):
        x = _pool_axis(np.moveaxis(x, axis, -1), k, s, d, join)
        x = np.moveaxis(x, -1, axis)
    return x


def _pool_axis(x: np.ndarray, kernel: int, stride: int, dilation: int, join: np.ufunc) -> np.ndarray:
    size = span(x.shape[-1], kernel, stride, dilation)
    if kernel > MOST_TAPS:
        windows = sliding_window_view(x, dilation * (kernel - 1) + 1, axis=-1)[..., ::stride, ::dilation]
        return np.asarray(join.reduce(windows, axis=-1))
    taps = [x[..., k * dilation : k * dilation + (size - 1) * stride + 1 : stride] for k in range(kernel)]
    out = taps[0].copy()
    for tap in taps[1:]:
        join(out, tap, out=out)
    return out


def upright(x: np.ndarray, weight: np.ndarray, spec: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """Return a transposed convolution as one of stride 1, with zeros between inputs and the kernel flipped."""
    kernel, groups, spatial = weight.shape[2:], spec["groups"], weight.ndim - 2
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], spec["stride"], strict=True)]
    spread = np.zeros((*x.shape[:2], *sizes), np.int64)
    spread[tuple([slice(None), slice(None), *[slice(None, None, s) for s in spec["stride"]]])] = x
    weight = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    weight = np.flip(weight.reshape(-1, *weight.shape[2:]), tuple(range(2, 2 + spatial)))
    extra = spec.get("output_padding") or [0] * spatial
    reach = [d * (k - 1) for k, d in zip(kernel, spec["dilation"], strict=True)]
    ends = zip(reach, spec["padding"], extra, strict=True)
    return spread, weight, [[r - low, r - high + e] for r, (low, high), e in ends]
