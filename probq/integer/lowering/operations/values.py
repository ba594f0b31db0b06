"""A symbolic value says what integer a tensor of the network becomes, and what that integer is worth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from probq.integer.packing import AnyPacking
from probq.utils.errors import ProbqError

MOVED = frozenset({"reshape", "permute", "repeat", "slice"})  # operations that give numbers as they were


def refusal(where: str, why: str) -> ProbqError:
    """Return the error that says that an operation has no integer form, and why."""
    return ProbqError(f"{where} cannot be lowered to integers: {why}")


@dataclass(frozen=True, eq=False)
class Value:
    """A value is a tensor of integers, worth `integer * 2^exponent / divisor`, of a layer times its `factor`.

    Attributes:
        op: operation of the integer model that makes it; "real" for the network's own input before quantization,
            "constant" for one that no input changes, "scaled" and "offset" for those of `operations/arithmetic.py`,
            "limited" for integers that are clipped, and worth 1 from there on.
        parents: the values it is made of.
        shape: without the batch.
        where: operation and module, for messages.
        exponent: integers that broadcast to the shape.
        divisor: 1 or more.
        factor: multipliers of a layer's scales; 1 for every other value.
        low, high: least and greatest integer, arrays that broadcast to the shape.
        attributes, tensors, packing: of the integer model's node.
        limits: the limits of a clip, in real numbers.
        quantizer: name of the input quantizer of a requantization.
        body: of a loop, what it computes in one step.
    """

    op: str
    parents: tuple[Value, ...]
    shape: tuple[int, ...]
    where: str
    exponent: np.ndarray = field(default_factory=lambda: np.zeros((), np.int64))
    divisor: int = 1
    low: np.ndarray = field(default_factory=lambda: np.zeros((), np.int64))
    high: np.ndarray = field(default_factory=lambda: np.zeros((), np.int64))
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    packing: Mapping[str, AnyPacking] = field(default_factory=dict)
    limits: tuple[float | None, float | None] = (None, None)
    quantizer: str = ""
    body: Any = None
    factor: np.ndarray = field(default_factory=lambda: np.ones((), np.int64))

    def __post_init__(self) -> None:
        for name in ("exponent", "low", "high", "factor"):
            object.__setattr__(self, name, compressed(np.asarray(getattr(self, name))))

    @property
    def bound(self) -> int:
        """Return the greatest magnitude."""
        return max(-int(self.low.min()), int(self.high.max()), 0)


def values_of(outputs: Sequence[Value]) -> Iterator[Value]:
    """Yield the values that outputs are made of, each once, after those that it needs itself."""
    done: set[int] = set()
    stack: list[tuple[Value, bool]] = [(output, False) for output in reversed(outputs)]
    while stack:
        value, ready = stack.pop()
        if id(value) in done:
            continue
        if ready:
            done.add(id(value))
            yield value
        else:
            stack.append((value, True))
            stack.extend((parent, False) for parent in value.parents)


def layer_of(value: Value) -> str:
    """Return the name of the layer whose accumulators a value is, in whatever steps, empty if it is none."""
    value = value.parents[0] if value.op == "multiply" else value
    return value.quantizer if value.op in ("linear", "conv") else ""


def compressed(array: np.ndarray) -> np.ndarray:
    """Return the array with every axis along which it is constant shortened to length 1; a scalar if it is constant."""
    if array.size and (array == array.reshape(-1)[0]).all():
        return array.reshape(-1)[:1].reshape(())
    for axis in range(array.ndim):
        first = array.take([0], axis)
        if (array == first).all():
            array = first
    return array


def along(array: np.ndarray, shape: tuple[int, ...], function: Any) -> np.ndarray:
    """Return a shape-changing function applied to what broadcasts to `shape`."""
    return array if array.ndim == 0 else compressed(function(np.broadcast_to(array, shape)))


def moved(
    op: str, value: Value, shape: tuple[int, ...], where: str, attributes: Mapping[str, Any], function: Any
) -> Value:
    """Return a value whose numbers are only moved (reshape, permute); `function` does the same to an array."""
    exponent, low, high = (along(a, value.shape, function) for a in (value.exponent, value.low, value.high))
    if value.op == "constant":
        return replace(value, shape=shape, where=where, exponent=exponent, low=low, high=high)
    return Value(op, (value,), shape, where, exponent, value.divisor, low, high, attributes)


def constant(numbers: np.ndarray, shape: tuple[int, ...], where: str) -> Value:
    """Return a value that is the same for every example.

    Args:
        numbers: float64, which broadcast to the shape.
        shape: without the batch.
        where: operation and module, for messages.
    """
    if not np.isfinite(numbers).all():
        raise refusal(where, "its constant is not finite")
    exponent = min((trailing(Fraction(c)) for c in np.unique(numbers).tolist() if c), default=0)
    units = np.ldexp(numbers, -exponent)
    if np.abs(units).max(initial=0) >= 2**62:
        raise refusal(where, "its constants are too far apart for integers of one step; give them fewer digits")
    integers = np.broadcast_to(units.astype(np.int64), shape)
    return Value("constant", (), shape, where, np.array(exponent), 1, integers, integers)


def multiplied(value: Value, multiplier: np.ndarray, exponent: np.ndarray, divisor: int) -> Value:
    """Return the same numbers in finer steps, as integers times `multiplier`."""
    multiplier = compressed(multiplier)
    if multiplier.ndim == 0 and int(multiplier) == 1:
        return value
    if value.op == "constant":
        return replace(
            value, exponent=exponent, divisor=divisor, low=value.low * multiplier, high=value.low * multiplier
        )
    if value.op == "multiply":
        return multiplied(value.parents[0], multiplier * value.tensors["multiplier"], exponent, divisor)
    if value.bound * int(multiplier.max()) >= 2**62:
        raise ProbqError(f"{value.where}: its integers would not fit a common step; use narrower widths")
    low, high = value.low * multiplier, value.high * multiplier
    tensors = {"multiplier": multiplier}
    return Value("multiply", (value,), value.shape, value.where, exponent, divisor, low, high, {}, tensors)


def reduced(value: Value) -> tuple[Value, int]:
    """Return the value without what all its integers are multiples of, and that number.

    An output's scale holds it.
    """
    if value.op != "multiply":
        return value, 1
    multiplier = value.tensors["multiplier"]
    unit = int(np.gcd.reduce(multiplier, axis=None))
    return multiplied(value.parents[0], multiplier // unit, value.exponent, value.divisor), unit


def aligned(value: Value, exponent: int, divisor: int) -> Value:
    """Return the value in steps of `2^exponent / divisor`, which must be finer than its own."""
    shift = value.exponent - exponent
    if int(shift.max()) > 40:
        raise ProbqError(f"{value.where}: its steps differ by more than 2^40; the integers would not fit")
    multiplier = np.left_shift(1, shift) * (divisor // value.divisor)
    return multiplied(value, multiplier, np.array(exponent), divisor)


def common(values: list[Value]) -> list[Value]:
    """Return the values in one common step, of the finest exponent and the least common divisor."""
    exponent = min(int(v.exponent.min()) for v in values)
    return [aligned(v, exponent, math.lcm(*(w.divisor for w in values))) for v in values]


def clipped(value: Value, low: float | None, high: float | None, where: str) -> Value:
    """Return `clip(value, low, high)` for real limits.

    These must be integers in the value's steps when it is not rounded.
    """
    if value.op == "real":
        return Value("clip", (value,), value.shape, where, limits=(low, high))
    fine = fine_enough(value, low, high)
    if fine is None:
        return Value(
            "clip",
            (value,),
            value.shape,
            where,
            value.exponent,
            value.divisor,
            value.low,
            value.high,
            limits=(low, high),
            attributes={"refused": True},
        )
    bounds = [None if c is None else in_steps(c, fine) for c in (low, high)]
    lo, hi = fine.low, fine.high
    if bounds[0] is not None:
        lo, hi = np.maximum(lo, bounds[0]), np.maximum(hi, bounds[0])
    if bounds[1] is not None:
        lo, hi = np.minimum(lo, bounds[1]), np.minimum(hi, bounds[1])
    attributes = {"lo": bounds[0], "hi": bounds[1]}
    return Value(
        "clip", (fine,), value.shape, where, fine.exponent, fine.divisor, lo, hi, attributes, limits=(low, high)
    )


def in_steps(limit: float, value: Value) -> int:
    """Return a real number, which must be a multiple of the value's one step, in such steps."""
    if limit == 0:
        return 0
    return int(Fraction(limit) * value.divisor / Fraction(2) ** int(value.exponent))


def fine_enough(value: Value, *limits: float | None) -> Value | None:
    """Return the value in one step fine enough to hold the limits as integers, itself where they are 0."""
    given = [Fraction(c) for c in limits if c]
    if not given:
        return value
    exponent = int(value.exponent.min())
    for c in given:
        part = c * value.divisor
        if part.denominator & (part.denominator - 1):
            return None
        exponent = min(exponent, trailing(part))
    if exponent < int(value.exponent.min()) - 24:
        return None
    return aligned(value, exponent, value.divisor)


def trailing(value: Fraction) -> int:
    """Return the exponent of the largest power of two that divides a dyadic fraction."""
    if value.denominator > 1:
        return -(value.denominator.bit_length() - 1)
    return (value.numerator & -value.numerator).bit_length() - 1
