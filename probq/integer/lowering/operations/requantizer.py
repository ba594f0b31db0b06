"""Values are rounded to the inputs of layers, as early as that commutes with what happens to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from probq.integer.lowering.operations.bounds import check_bound
from probq.integer.lowering.operations.requantize import (
    Requantization,
    RoundingTarget,
    in_two_steps,
    requantization,
)
from probq.integer.lowering.operations.values import Value, compressed
from probq.utils.errors import ProbqError

COMMUTING = frozenset({"clip", "max_pool", "reshape", "permute", "concat", "repeat", "slice", "pad", "where"})


class Requantizer:
    """A requantizer rounds values to the inputs of layers, as early as rounding commutes with what happens to them."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], tuple[Value, Value]] = {}

    def __call__(self, value: Value, target: RoundingTarget, name: str, lo: int = 0, hi: int | None = None) -> Value:
        """Return the value as codes of `target`, its codes limited to `lo .. hi`."""
        hi = target.count - 1 if hi is None else hi
        key = (id(value), target, lo, hi)
        if key not in self._made:
            self._made[key] = (value, self._round(value, target, name, lo, hi))
        return self._made[key][1]

    def _round(self, value: Value, target: RoundingTarget, name: str, lo: int, hi: int) -> Value:
        if value.op == "multiply":
            return self(value.parents[0], target, name, lo, hi)
        if value.op == "clip" and value.limits != (None, None):
            low, high = value.limits
            if low is not None:
                lo, hi = max(lo, target.code(low)), max(hi, target.code(low))
            if high is not None:
                lo, hi = min(lo, target.code(high)), min(hi, target.code(high))
            return self(value.parents[0], target, name, lo, hi)
        if value.op == "constant":
            return _held(value, target, lo, hi)
        if value.op == "table":
            return _composed(value, target, lo, hi)
        if value.op in COMMUTING and not (value.op == "pad" and target.level(target.code(0.0), lo, hi)):
            masks = value.parents[:1] if value.op == "where" else ()
            parents = tuple(self(p, target, name, lo, hi) for p in value.parents[len(masks) :])
            low, high = (int(min(p.low.min() for p in parents)), int(max(p.high.max() for p in parents)))
            low, high = (min(low, 0), max(high, 0)) if value.op == "pad" else (low, high)
            return Value(
                value.op,
                (*masks, *parents),
                value.shape,
                value.where,
                np.array(target.exponent),
                1,
                np.array(low),
                np.array(high),
                value.attributes,
                quantizer=name,
            )
        return _rounded(value, target, name, lo, hi)


def _composed(value: Value, target: RoundingTarget, lo: int, hi: int) -> Value:
    """Return a table of what follows from rounding another table's values."""
    r = requantization(value.exponent, value.divisor, value.bound, target)
    codes = (value.tensors["table"] * r.multiplier + r.add) >> r.shift
    levels = target.start + target.step * np.clip(codes, lo, hi)
    made: dict[str, Any] = {"exponent": np.array(target.exponent), "low": levels.min(), "high": levels.max()}
    return replace(value, tensors={"table": levels}, **made)


def _held(value: Value, target: RoundingTarget, lo: int, hi: int) -> Value:
    """Return a constant rounded."""
    u = np.ldexp(value.low.astype(np.float64) / value.divisor, value.exponent - target.exponent)
    codes = np.floor((u - target.start) / target.step + 0.5).clip(0, target.count - 1).clip(lo, hi).astype(np.int64)
    levels = target.start + target.step * codes
    return replace(value, exponent=np.array(target.exponent), divisor=1, low=levels, high=levels)


def _rounded(value: Value, target: RoundingTarget, name: str, lo: int, hi: int) -> Value:
    levels = (target.start + target.step * lo, target.start + target.step * hi)
    if target.step == 1:
        attributes: dict[str, Any] = {"lo": levels[0], "hi": levels[1]}
        reached = RoundingTarget(target.exponent, 0, 1, target.count)
    else:
        attributes, reached = {"lo": lo, "hi": hi, "start": target.start, "step": target.step}, target
    made: dict[str, Any] = {
        "exponent": np.array(target.exponent),
        "low": np.array(levels[0]),
        "high": np.array(levels[1]),
    }
    if value.op == "real":
        attributes |= {"shape": list(value.shape), "scale": 2.0 ** (target.exponent - int(value.exponent))}
        return Value("input", (), value.shape, value.where, attributes=attributes, quantizer=name, **made)
    value, r = _with_room(value, reached)
    return Value(
        "requantize", (value,), value.shape, value.where, attributes=attributes, tensors=_tensors(r), quantizer=name,
        **made,
    )  # fmt: skip


def _tensors(r: Requantization) -> dict[str, np.ndarray]:
    return {name: compressed(getattr(r, name)) for name in ("multiplier", "add", "shift")}


def _with_room(value: Value, target: RoundingTarget) -> tuple[Value, Requantization]:
    """Return what is rounded, and how: a wide average is shifted by a node of its own before it is divided."""
    try:
        return _merged(value, requantization(value.exponent, value.divisor, value.bound, target, value.factor))
    except ProbqError:
        if value.divisor == 1:
            raise
    shift, division = in_two_steps(value.exponent, value.divisor, value.bound, target)
    low, high = ((end + shift.add) >> shift.shift for end in (value.low, value.high))
    limits = {"lo": int(low.min()), "hi": int(high.max())}
    source, merged = _merged(value, shift)
    left = Value(
        "requantize", (source,), value.shape, value.where, value.exponent + shift.shift, value.divisor, low, high,
        limits, _tensors(merged),
    )  # fmt: skip
    return left, division


def _merged(value: Value, r: Requantization) -> tuple[Value, Requantization]:
    """Return what constants are multiplied with and added to, and one requantization for all of it, in 64 bits."""
    multiplier, add = r.multiplier, r.add
    while value.op in ("offset", "scaled", "multiply"):
        if value.op == "offset":
            add = add + multiplier * value.tensors["add"]
        else:
            multiplier = multiplier * value.tensors["multiplier"]
        value = value.parents[0]
    check_bound(value, then_rounded=True)
    return value, Requantization(multiplier, add, r.shift)
