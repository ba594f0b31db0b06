"""Pooling, sums and means become integers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from probq.integer.lowering.operations.arithmetic import div
from probq.integer.lowering.operations.elementwise import numbers
from probq.integer.lowering.operations.values import Value, aligned, refusal


def many(value: Any, count: int) -> list[int]:
    """Return a number for each spatial axis, from one number or a list."""
    values = [value] if isinstance(value, int) else list(value)
    return [int(v) for v in (values * count if len(values) == 1 else values)]


def _window(value: Value, kernel: Any, stride: Any, padding: Any) -> dict[str, Any]:
    axes = len(value.shape) - 1
    window = many(kernel, axes)
    pads = [[p, p] for p in many(padding, axes)]
    return {"kernel": window, "stride": many(stride, axes) if stride else window, "padding": pads}


def max_pool(
    value: Value,
    where: str,
    shape: tuple[int, ...],
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Value:
    """Lower maximum pooling."""
    attributes = _window(value, kernel, stride, padding)
    attributes |= {"dilation": many(dilation, len(value.shape) - 1), "ceil_mode": ceil_mode}
    if value.op == "real":
        return Value("max_pool", (value,), shape, where, attributes=attributes)
    value = _same_within(value)
    return Value("max_pool", (value,), shape, where, value.exponent, value.divisor, *_everywhere(value), attributes)


def _same_within(value: Value) -> Value:
    """Return the value with one step over all spatial positions of a channel."""
    if value.exponent.ndim and any(n > 1 for n in value.exponent.shape[1:]):
        return aligned(value, int(value.exponent.min()), value.divisor)
    return value


def _everywhere(value: Value) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds that hold at every spatial position of a channel."""
    low, high = value.low, value.high
    if low.ndim and any(n > 1 for n in low.shape[1:]):
        low = np.array(low.min())
    if high.ndim and any(n > 1 for n in high.shape[1:]):
        high = np.array(high.max())
    return low, high


def avg_pool(
    value: Value,
    where: str,
    shape: tuple[int, ...],
    kernel: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: Any = None,
) -> Value:
    """Lower average pooling to a sum, its divisor carried into the next rounding."""
    value = numbers(where, value)
    attributes = _window(value, kernel, stride, padding)
    if divisor is not None and divisor < 1:
        raise refusal(where, "its divisor is no positive number")
    counts = _counts(value.shape[1:], shape[1:], attributes, count_include_pad)
    attributes["padding"] = [
        [low, max(high, (out - 1) * stride + kernel - size - low)]
        for (low, high), out, stride, kernel, size in zip(
            attributes["padding"], shape[1:], attributes["stride"], attributes["kernel"], value.shape[1:], strict=True
        )
    ]
    most = math.prod(attributes["kernel"])
    if divisor is not None or (counts == most).all():
        return _summed(_same_within(value), shape, where, attributes, most, int(divisor or most))
    sums = _summed(_same_within(value), shape, where, attributes, most, 1)
    return div(sums, where, shape, torch.from_numpy(counts))


def window_sums(value: Value, shape: tuple[int, ...], where: str, attributes: Mapping[str, Any]) -> Value:
    """Return the sums of numbers within windows.

    Args:
        value: the numbers.
        shape: of the sums, without the batch.
        where: operation and module, for messages.
        attributes: kernel, stride and padding.
    """
    return _summed(_same_within(value), shape, where, attributes, math.prod(attributes["kernel"]), 1)


def _counts(inside: Sequence[int], outside: Sequence[int], spec: Mapping[str, Any], padding: bool) -> np.ndarray:
    """Return how many numbers are averaged at each position, those of the padding with them or not."""
    counts = np.ones([1] * (len(inside) + 1))
    for axis, (size, out) in enumerate(zip(inside, outside, strict=True)):
        pad = spec["padding"][axis][0]
        start = np.arange(out) * spec["stride"][axis] - pad
        stop = np.minimum(start + spec["kernel"][axis], size + pad)
        own = stop - start if padding else np.minimum(stop, size) - np.maximum(start, 0)
        counts = counts * own.reshape([-1 if k == axis + 1 else 1 for k in range(len(inside) + 1)])
    return counts


def total(value: Value, where: str, shape: tuple[int, ...], axes: Any, keepdims: bool = False, **_: Any) -> Value:
    """Lower a sum over axes other than the batch."""
    value = numbers(where, value)
    rank = len(value.shape) + 1
    inner = sorted(axis % rank - 1 for axis in (axes if isinstance(axes, list | tuple) else [axes]))
    if inner[0] < 0:
        raise refusal(where, "it sums over the batch")
    if value.exponent.ndim and any(value.exponent.shape[axis] > 1 for axis in inner):
        value = aligned(value, int(value.exponent.min()), value.divisor)
    count = math.prod(value.shape[axis] for axis in inner)
    attributes = {"axes": inner, "keepdims": bool(keepdims)}
    exponent = value.exponent
    if exponent.ndim:
        exponent = (
            exponent if keepdims else exponent.reshape([n for k, n in enumerate(exponent.shape) if k not in inner])
        )
    low, high = np.array(min(0, int(value.low.min())) * count), np.array(max(0, int(value.high.max())) * count)
    return Value("sum", (value,), shape, where, exponent, value.divisor, low, high, attributes)


def mean(value: Value, where: str, shape: tuple[int, ...], axes: Any, keepdims: bool = False, **_: Any) -> Value:
    """Lower a mean over axes other than the batch."""
    result = total(value, where, shape, axes, keepdims)
    count = math.prod(value.shape) // math.prod(shape)
    return replace(result, divisor=result.divisor * count)


def _summed(
    value: Value, shape: tuple[int, ...], where: str, attributes: Mapping[str, Any], count: int, divisor: int
) -> Value:
    low, high = _everywhere(value)
    low, high = np.minimum(low, 0) * count, np.maximum(high, 0) * count
    return Value("sum_pool", (value,), shape, where, value.exponent, value.divisor * divisor, low, high, attributes)
