"""A recurrence of symbolic integers: its states have one format, which a step gives back as it got it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from probq.integer.lowering.operations.data_movement import piece, reshape
from probq.integer.lowering.operations.joining import concat
from probq.integer.lowering.operations.values import Value, multiplied, refusal


@dataclass(frozen=True, eq=False)
class Body:
    """A body is what a loop computes in one step.

    Attributes:
        item: the part of the sequence that the step reads.
        states: those before the step.
        ends: those after it.
        output: what the step adds to the loop's value.
    """

    item: Value
    states: tuple[Value, ...]
    ends: tuple[Value, ...]
    output: Value


def item_of(sequence: Value, where: str) -> Value:
    """Return the part of a sequence `[time, ...]` that a step reads.

    Raises:
        ProbqError: if time steps differ in what their integers are worth.
    """
    exponent = np.broadcast_to(sequence.exponent, sequence.shape)
    if (exponent != exponent[:1]).any():
        raise refusal(where, "its time steps have integers of different worth, as joined sequences may")
    low, high = (np.broadcast_to(end, sequence.shape) for end in (sequence.low, sequence.high))
    return Value("item", (), sequence.shape[1:], where, exponent[0], sequence.divisor, low.min(0), high.max(0))


def state_like(end: Value | None, shape: tuple[int, ...], where: str, first: Value | None = None) -> Value:
    """Return a state in a format that holds what a step leaves of it, and what it begins with, by default zeros."""
    found = [value for value in (end, first) if value is not None]
    exponent = functools.reduce(np.minimum, (value.exponent for value in found), np.array(62 * (not found)))
    exponent, divisor = exponent if found else np.array(0), math.lcm(*(value.divisor for value in found))
    hulls = [(0, 0)]
    for value in found:
        finer = int(np.left_shift(1, value.exponent - exponent).max()) * (divisor // value.divisor)
        hulls.append((_hull(value)[0] * finer, _hull(value)[1] * finer))
    low, high = min(low for low, _ in hulls), max(high for _, high in hulls)
    attributes, tensors = {"shape": list(shape), "lo": low, "hi": high}, dict[str, np.ndarray]()
    state = Value("state", (), shape, where, exponent, divisor, np.array(low), np.array(high), attributes)
    if first is not None and first.op == "constant":
        tensors = {"first": np.broadcast_to(in_format(first, state).low, shape)}
    return replace(state, tensors=tensors)


def in_format(value: Value, state: Value) -> Value:
    """Return a value in the steps of a state, which are its own or finer."""
    finer = np.left_shift(1, value.exponent - state.exponent) * (state.divisor // value.divisor)
    return multiplied(value, finer, state.exponent, state.divisor)


def _hull(value: Value) -> tuple[int, int]:
    """Return ends that hold for all numbers of a value, as `probq.integer.ranges` proves them without channels."""
    if value.op == "multiply":
        factors = value.tensors["multiplier"]
        ends = [end * int(factor) for end in _hull(value.parents[0]) for factor in (factors.min(), factors.max())]
        return min(ends), max(ends)
    if value.op == "add":
        lows, highs = zip(*map(_hull, value.parents), strict=True)
        return sum(lows), sum(highs)
    return int(value.low.min()), int(value.high.max())


def has_format(state: Value, end: Value, first: Value | None) -> bool:
    """Return whether a state is as a step leaves it, and as it begins."""
    other = state_like(end, state.shape, state.where, first)
    return state.divisor == other.divisor and all(
        bool((getattr(state, name) == getattr(other, name)).all()) for name in ("exponent", "low", "high")
    )


@dataclass(frozen=True, eq=False)
class Loop:
    """A loop has the value of all its steps, and says where in it the outputs and the last states are.

    Attributes:
        value: `[time, ...]`, in the last axis the output and those last states that are read and are no output.
        places: first and last number of each state in it.
        where: operation and module, for messages.
        reverse: whether the last time step comes first.
    """

    value: Value
    places: Mapping[int, tuple[int, int]]
    where: str
    reverse: bool

    def outputs(self) -> Value:
        """Return the outputs of all steps."""
        return self._part(self.value, 0)

    def last(self, place: int) -> Value:
        """Return a state after the last step."""
        steps, size = self.value.shape[0], self.value.shape[-1]
        start = 0 if self.reverse else steps - 1
        end = piece(self.value, self.where, (1, *self.value.shape[1:]), 1, start, start + 1)
        return self._part(reshape(end, self.where, (*self.value.shape[1:-1], size)), place)

    def _part(self, value: Value, place: int) -> Value:
        start, stop = self.places[place]
        if (start, stop) == (0, value.shape[-1]):
            return value
        return piece(value, self.where, (*value.shape[:-1], stop - start), len(value.shape), start, stop)


def loop_of(sequence: Value, body: tuple[Value, tuple[Value, ...], tuple[Value, ...]], firsts: Mapping[int, Value],
            read: Iterable[int], reverse: bool, where: str) -> Loop:  # fmt: skip
    """Return the loop of a body over a sequence.

    Args:
        sequence: `[time, ...]`.
        body: item, states and what a step leaves of them.
        firsts: what states begin with, by their places; zeros for others.
        read: places of the states that are read after the last step.
        reverse: whether the last time step comes first.
        where: operation and module, for messages.
    """
    item, states, ends = body
    ends = tuple(in_format(end, state) for end, state in zip(ends, states, strict=True))
    begun = {k: in_format(first, states[k]) for k, first in firsts.items() if first.op != "constant"}
    kept = [0, *(place for place in sorted(set(read)) if place and ends[place] is not ends[0])]
    sizes = np.cumsum([0, *(ends[place].shape[-1] for place in kept)])
    places = {place: (int(sizes[k]), int(sizes[k + 1])) for k, place in enumerate(kept)}
    shape = (*ends[0].shape[:-1], int(sizes[-1]))
    output = ends[0] if len(kept) == 1 else concat([ends[k] for k in kept], where, shape, len(shape))
    exponent, low, high = (np.asarray(getattr(output, name))[None] for name in ("exponent", "low", "high"))
    value = Value(
        "loop", (sequence, *begun.values()), (sequence.shape[0], *output.shape), where, exponent, output.divisor, low,
        high, {"reverse": reverse} | ({"given": list(begun)} if begun else {}), body=Body(item, states, ends, output),
    )  # fmt: skip
    return Loop(value, places, where, reverse)
