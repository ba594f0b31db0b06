"""These operations change no width, element by element: clips, and what changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from probq.integer.lowering.operations.requantizer import COMMUTING
from probq.integer.lowering.operations.values import Value, clipped, refusal

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
WIDEST = 2**16  # of whole numbers that enter the network and are computed with
MOST_IDS = 2**24  # of those that are ids of tokens, categories and the like


def numbers(where: str, value: Value) -> Value:
    """Return the value itself, unless it is the network's own input, which no quantizer has rounded yet."""
    if value.op in ("real", "index"):
        raise refusal(where, "it works on the network's own input before any layer; do it outside of the network")
    return value


def is_raw(value: Value) -> bool:
    """Return whether a value is the network's own real input, at most moved, pooled, clipped or joined."""
    return value.op == "real" or (value.op in COMMUTING and any(map(is_raw, value.parents)))


def whole_numbers(given: Any, where: str) -> Any:
    """Return an operand; the network's own input of whole numbers becomes integers that are worth themselves.

    Raises:
        ProbqError: if they may be of any size.
    """
    value = counted(given)
    if isinstance(value, Value) and are_ids(value):
        raise refusal(
            where,
            "it computes with whole numbers of any size; give bool, uint8, or 16 bits at most, real numbers, or a mask "
            "of which the example holds 0 and 1 alone (of a posterior that was loaded: lower(q, example=...))",
        )
    return value


def counted(given: Any) -> Any:
    """Return an operand likewise; masks and whole numbers of any size become ids, which a model checks."""
    if not isinstance(given, Value) or given.op != "index":
        return given
    if given.bound > WIDEST or "count" in given.attributes:
        count = given.attributes.get("count", MOST_IDS)
        ids = {"shape": list(given.shape), "index": True, "count": count}
        return Value("input", (), given.shape, given.where, high=np.array(count - 1), attributes=ids)
    attributes = {"shape": list(given.shape), "scale": 1.0, "lo": int(given.low), "hi": int(given.high)}
    return Value("input", (), given.shape, given.where, low=given.low, high=given.high, attributes=attributes)


def are_ids(value: Value) -> bool:
    """Return whether a value is one of ids, moved, added to, or both."""
    if value.op == "input":
        return value.bound > WIDEST and bool(value.attributes.get("index"))
    return value.bound > WIDEST and is_whole(value) and any(map(are_ids, value.parents))


def is_whole(value: Value) -> bool:
    """Return whether the integers of a value are worth themselves."""
    return value.divisor == 1 and not value.exponent.any()


def check_whole(value: Value, where: str) -> Value:
    """Return a value whose integers are worth themselves.

    Raises:
        ProbqError: it is another.
    """
    if not is_whole(value):
        raise refusal(where, "it makes whole numbers of real ones; leave out the conversion, or compare, as x > 0")
    return value


def limited(value: Value, where: str, low: int, high: int) -> Value:
    """Return integers, clipped, that are worth themselves from there on."""
    ends = value.low.clip(low, high), value.high.clip(low, high)
    limits = {"lo": low, "hi": high}
    return Value("limited", (value,), value.shape, where, low=ends[0], high=ends[1], attributes=limits)


def stays_index(value: Any, dtype: torch.dtype) -> bool:
    """Return whether a conversion takes the network's own whole numbers to a type that holds them as they are."""
    if not isinstance(value, Value) or value.op != "index" or dtype not in WHOLE:
        return False
    return torch.iinfo(dtype).min <= int(value.low) and int(value.high) <= torch.iinfo(dtype).max


def same(value: Value, *_: Any, **__: Any) -> Value:
    """Lower operations that change nothing when the network is evaluated."""
    return value


def clip(low: float | None, high: float | None) -> Callable[..., Value]:
    """Return a function that lowers a clip with fixed limits, such as a ReLU."""
    return lambda value, where, shape: clipped(value, low, high, where)


def hardtanh(value: Value, where: str, shape: tuple[int, ...], low: float = -1.0, high: float = 1.0) -> Value:
    """Lower `hardtanh`."""
    return clipped(value, float(low), float(high), where)
