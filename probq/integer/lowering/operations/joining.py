"""Stacking, concatenation and writing into a part of a tensor become integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from probq.integer.lowering.operations.data_movement import piece, reshape
from probq.integer.lowering.operations.elementwise import numbers
from probq.integer.lowering.operations.values import Value, aligned, compressed, refusal


def stack(values: Sequence[Value], where: str, shape: tuple[int, ...], axis: int = 0) -> Value:
    """Lower concatenation along an axis of its own."""
    inner = axis % (len(shape) + 1) - 1
    apart = (*shape[:inner], 1, *shape[inner + 1 :])
    return concat([reshape(value, where, apart) for value in values], where, shape, inner + 1)


def concat(values: Sequence[Value], where: str, shape: tuple[int, ...], axis: int = 0) -> Value:
    """Lower concatenation along an axis other than the batch."""
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
    """Lower `slice_scatter`, which replaces a piece of one axis as an operation in place on a slice does."""
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
    """Lower `copy`, which is what an assignment `x[...] = source` puts there."""
    if not isinstance(source, Value) or source.shape != shape:
        raise refusal(where, "it assigns what has another shape or is no tensor that layers computed")
    return source
