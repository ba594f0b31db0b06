"""Stacking, concatenation and writing into a part of a tensor become integers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from probq.integer.lowering.operations.data_movement import piece, reshape
from probq.integer.lowering.operations.elementwise import is_raw, numbers
from probq.integer.lowering.operations.rearranging import padded_by_itself
from probq.integer.lowering.operations.values import Value, aligned, compressed, constant, refusal


def stack(values: Sequence[Any], where: str, shape: tuple[int, ...], axis: int = 0) -> Value:
    """Lower concatenation along an axis of its own."""
    inner = axis % (len(shape) + 1) - 1
    apart = (*shape[:inner], 1, *shape[inner + 1 :])
    parts = [
        reshape(part, where, apart) if isinstance(part, Value) else part.unsqueeze(axis % (part.dim() + 1))
        for part in values
    ]
    return concat(parts, where, shape, inner + 1)


def concat(values: Sequence[Any], where: str, shape: tuple[int, ...], axis: int = 0) -> Value:
    """Lower concatenation along an axis other than the batch, of values and of constants."""
    rank = len(shape) + 1
    if axis % rank == 0:
        raise refusal(where, "it concatenates along the batch")
    inner = axis % rank - 1
    given = [part if isinstance(part, Value) else held(part, where) for part in values]
    if any(map(is_raw, given)):
        if not all(is_raw(part) or part.op == "constant" for part in given):
            raise refusal(
                where, "it joins the network's own input and what layers computed; let a layer read the input"
            )
        return Value("concat", tuple(given), shape, where, attributes={"axis": inner})
    divisor = math.lcm(*(numbers(where, v).divisor for v in given))
    parts = [aligned(v, int(v.exponent.min()), divisor) for v in given]
    joined = [
        np.concatenate([np.broadcast_to(getattr(p, name), p.shape) for p in parts], inner)
        for name in ("exponent", "low", "high")
    ]
    exponent, low, high = map(compressed, joined)
    if all(part.op == "constant" for part in parts):
        return replace(parts[0], shape=shape, exponent=exponent, divisor=divisor, low=low, high=high)
    return Value("concat", tuple(parts), shape, where, exponent, divisor, low, high, {"axis": inner})


def held(tensor: Tensor, where: str) -> Value:
    """Return a tensor of the network, with the batch, as a value that no input changes.

    Raises:
        ProbqError: if its rows differ.
    """
    rows = tensor.detach().double().numpy()
    if not (rows == rows[:1]).all():
        raise refusal(where, "its constant differs from one example of a batch to the next")
    return constant(rows[0], rows.shape[1:], where)


def filled(value: Value, where: str, shape: tuple[int, ...], number: Any) -> Value:
    """Lower `fill`, which is what an assignment of a number puts there."""
    if isinstance(number, Value):
        raise refusal(where, "it assigns a number that is computed")
    return constant(np.array(float(number)), shape, where)


def padded(
    value: Value, where: str, shape: tuple[int, ...], ends: Sequence[int], mode: str = "constant", fill: Any = None
) -> Value:
    """Lower padding, by zeros, by a number, or by numbers of the value itself."""
    if mode != "constant" or fill in (None, 0):
        return padded_by_itself(value, where, shape, ends, mode, fill)
    if not math.isfinite(fill):
        raise refusal(where, f"it pads with {fill}; where a maximum pooling follows, let that pad, which does the same")
    for place, (low, high) in enumerate(zip(ends[::2], ends[1::2], strict=True), 1):
        inner = len(value.shape) - place
        if min(low, high) < 0 or inner < 0:
            raise refusal(where, "it cuts off, or pads the batch")
        number = np.array(float(fill))
        sides = [_sized(value.shape, inner, size) for size in (low, high)]
        front, behind = ([constant(number, side, where)] if side[inner] else [] for side in sides)
        value = concat(
            [*front, value, *behind], where, _sized(value.shape, inner, low + value.shape[inner] + high), inner + 1
        )
    return value


def replaced(
    value: Any,
    where: str,
    shape: tuple[int, ...],
    part: Any,
    axis: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Value:
    """Lower `slice_scatter`, which replaces a piece of one axis as an operation in place on a slice does."""
    value, part = (each if isinstance(each, Value) else held(each, where) for each in (value, part))
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
    return piece(numbers(where, value), where, _sized(value.shape, inner, stop - start), inner + 1, start, stop)


def _sized(shape: tuple[int, ...], inner: int, size: int) -> tuple[int, ...]:
    return (*shape[:inner], size, *shape[inner + 1 :])


def copied(value: Value, where: str, shape: tuple[int, ...], source: Any, *_: Any) -> Value:
    """Lower `copy`, which is what an assignment `x[...] = source` puts there."""
    source = source if isinstance(source, Value) else held(source.expand(1, *shape), where)
    if source.shape != shape:
        raise refusal(where, "it assigns what has another shape")
    return source


# Those that take constants, which may be tensors of the network.
JOINING: Mapping[str, Callable[..., Value]] = MappingProxyType(
    {
        "cat": concat, "concat": concat, "concatenate": concat, "stack": stack,
        "hstack": lambda values, where, shape: concat(values, where, shape, 1),
        "dstack": lambda values, where, shape: concat(values, where, shape, 2),
        "slice_scatter": replaced, "copy": copied, "fill": filled, "pad": padded,
    }
)  # fmt: skip
