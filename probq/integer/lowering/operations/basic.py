"""What each operation of an exported network becomes; the operations that change no width."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from probq.integer.lowering.operations.data_movement import MOVES, piece, reshape
from probq.integer.lowering.operations.values import Value, aligned, clipped, compressed, refusal

WIDEST = 2**16  # of whole numbers that enter the network


def numbers(where: str, value: Value) -> Value:
    """The value itself, unless it is the network's own input, which no quantizer has rounded yet."""
    if value.op in ("real", "index"):
        raise refusal(where, "it works on the network's own input before any layer; do it outside of the network")
    return value


def whole_numbers(given: Any, where: str) -> Any:
    """An operand, where it is the network's own input of whole numbers as integers that are worth themselves."""
    if not isinstance(given, Value) or given.op != "index":
        return given
    if given.bound > WIDEST:
        raise refusal(
            where, "it computes with whole numbers of any size; give uint8, or 16 bits at most, or real numbers"
        )
    attributes = {"shape": list(given.shape), "scale": 1.0, "lo": int(given.low), "hi": int(given.high)}
    return Value("input", (), given.shape, given.where, low=given.low, high=given.high, attributes=attributes)


def same(value: Value, *_: Any, **__: Any) -> Value:
    """Operations that change nothing when the network is evaluated."""
    return value


def clip(low: float | None, high: float | None) -> Callable[..., Value]:
    """A clip with fixed limits, such as a ReLU."""
    return lambda value, where, shape: clipped(value, low, high, where)


def clamp(value: Value, where: str, shape: tuple[int, ...], low: Any = None, high: Any = None) -> Value:
    """`clamp` with fixed limits."""
    if isinstance(low, Value) or isinstance(high, Value):
        raise refusal(where, "its limits are computed")
    limits = [None if c is None else float(c) for c in (low, high)]
    return clipped(value, limits[0], limits[1], where)


def hardtanh(value: Value, where: str, shape: tuple[int, ...], low: float = -1.0, high: float = 1.0) -> Value:
    """`hardtanh`."""
    return clamp(value, where, shape, low, high)


def many(value: Any, count: int) -> list[int]:
    """A number for each spatial axis, from one number or a list."""
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
    """Maximum pooling."""
    attributes = _window(value, kernel, stride, padding)
    attributes |= {"dilation": many(dilation, len(value.shape) - 1), "ceil_mode": ceil_mode}
    if value.op == "real":
        return Value("max_pool", (value,), shape, where, attributes=attributes)
    value = _same_within(value)
    return Value("max_pool", (value,), shape, where, value.exponent, value.divisor, *_everywhere(value), attributes)


def _same_within(value: Value) -> Value:
    """The value with one step over all spatial positions of a channel."""
    if value.exponent.ndim and any(n > 1 for n in value.exponent.shape[1:]):
        return aligned(value, int(value.exponent.min()), value.divisor)
    return value


def _everywhere(value: Value) -> tuple[np.ndarray, np.ndarray]:
    """Bounds that hold at every spatial position of a channel."""
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
    """Average pooling: a sum, its divisor carried into the next rounding."""
    value = numbers(where, value)
    attributes = _window(value, kernel, stride, padding)
    padded = any(low for low, _ in attributes["padding"])
    if ceil_mode or (padded and not count_include_pad):
        raise refusal(where, "the number of values it averages differs between positions")
    if divisor is not None and divisor < 1:
        raise refusal(where, "its divisor is no positive number")
    count = math.prod(attributes["kernel"])
    return _summed(_same_within(value), shape, where, attributes, count, int(divisor or count))


def adaptive_avg_pool(value: Value, where: str, shape: tuple[int, ...], size: Any) -> Value:
    """Adaptive average pooling, where all windows are alike."""
    inside, outside = value.shape[1:], shape[1:]
    if any(a % b for a, b in zip(inside, outside, strict=True)):
        raise refusal(where, f"its windows differ in size ({inside} to {outside}); choose sizes that divide")
    return avg_pool(value, where, shape, [a // b for a, b in zip(inside, outside, strict=True)])


def total(value: Value, where: str, shape: tuple[int, ...], axes: Any, keepdims: bool = False, **_: Any) -> Value:
    """Sum over axes other than the batch."""
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
    """Mean over axes other than the batch."""
    result = total(value, where, shape, axes, keepdims)
    count = math.prod(value.shape) // math.prod(shape)
    return replace(result, divisor=result.divisor * count)


def _summed(
    value: Value, shape: tuple[int, ...], where: str, attributes: Mapping[str, Any], count: int, divisor: int
) -> Value:
    low, high = _everywhere(value)
    low, high = np.minimum(low, 0) * count, np.maximum(high, 0) * count
    return Value("sum_pool", (value,), shape, where, value.exponent, value.divisor * divisor, low, high, attributes)


def stack(values: Sequence[Value], where: str, shape: tuple[int, ...], axis: int = 0) -> Value:
    """Concatenation along an axis of its own."""
    inner = axis % (len(shape) + 1) - 1
    apart = (*shape[:inner], 1, *shape[inner + 1 :])
    return concat([reshape(value, where, apart) for value in values], where, shape, inner + 1)


def concat(values: Sequence[Value], where: str, shape: tuple[int, ...], axis: int = 0) -> Value:
    """Concatenation along an axis other than the batch."""
    rank = len(values[0].shape) + 1
    if axis % rank == 0:
        raise refusal(where, "it concatenates along the batch")
    inner = axis % rank - 1
    divisor = math.lcm(*(numbers(where, v).divisor for v in values))
    parts = [aligned(v, int(v.exponent.min()), divisor) for v in values]
    joined = [
        np.concatenate([np.broadcast_to(getattr(p, name), p.shape) for p in parts], inner)
        for name in ("exponent", "low", "high")
    ]
    exponent, low, high = map(compressed, joined)
    return Value("concat", tuple(parts), shape, where, exponent, divisor, low, high, {"axis": inner})


def replaced(
    value: Value,
    where: str,
    shape: tuple[int, ...],
    part: Any,
    axis: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Value:
    """`slice_scatter`: the value with a piece of one axis replaced, as an operation in place on a slice does."""
    inner = axis % (len(shape) + 1) - 1
    if inner < 0 or step != 1:
        raise refusal(where, "it replaces a part of the batch" if inner < 0 else "it replaces every other number")
    first, last, _ = slice(start, end).indices(shape[inner])
    pieces = [part]
    if first > 0:
        pieces.insert(0, _side(value, where, inner, 0, first))
    if last < shape[inner]:
        pieces.append(_side(value, where, inner, last, shape[inner]))
    return concat(pieces, where, shape, inner + 1) if len(pieces) > 1 else part


def _side(value: Value, where: str, inner: int, start: int, stop: int) -> Value:
    shape = (*value.shape[:inner], stop - start, *value.shape[inner + 1 :])
    return piece(numbers(where, value), where, shape, inner + 1, start, stop)


def copied(value: Value, where: str, shape: tuple[int, ...], source: Any, *_: Any) -> Value:
    """`copy`: what an assignment `x[...] = source` puts there."""
    if not isinstance(source, Value) or source.shape != shape:
        raise refusal(where, "it assigns what has another shape or is no tensor that layers computed")
    return source


OPERATIONS: Mapping[str, Callable[..., Value]] = MappingProxyType(
    {
        "relu": clip(0.0, None), "relu_": clip(0.0, None), "relu6": clip(0.0, 6.0), "relu6_": clip(0.0, 6.0),
        "clamp": clamp, "clamp_": clamp, "clamp_min": clamp, "hardtanh": hardtanh, "hardtanh_": hardtanh,
        "contiguous": same, "clone": same,
        "detach": same, "detach_": same, "alias": same, "to": same, "type_as": same,
        "max_pool1d": max_pool, "max_pool2d": max_pool, "max_pool3d": max_pool,
        "avg_pool1d": avg_pool, "avg_pool2d": avg_pool, "avg_pool3d": avg_pool,
        "adaptive_avg_pool1d": adaptive_avg_pool, "adaptive_avg_pool2d": adaptive_avg_pool,
        "adaptive_avg_pool3d": adaptive_avg_pool, "mean": mean, "sum": total,
        "cat": concat, "stack": stack, "slice_scatter": replaced, "copy": copied,
        **MOVES,
    }
)  # fmt: skip
