"""Constants that are joined with values, such as class tokens, become padding with zeros and an addition there.

Those that a mask chooses are made of the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from probq.integer.lowering.operations.rearranging import spread
from probq.integer.lowering.operations.values import Value, compressed, values_of


def with_constants_added(outputs: Sequence[Value]) -> list[Value]:
    """Return outputs in which no value is joined with a constant: no operation of an integer model has no input."""
    made: dict[int, Value] = {}
    for value in values_of(outputs):
        parents = tuple(made[id(parent)] for parent in value.parents)
        same = all(a is b for a, b in zip(parents, value.parents, strict=True))
        new = value if same else replace(value, parents=parents)
        if new.op == "concat" and any(parent.op == "constant" for parent in parents):
            new = _added(new)
        if new.op == "where" and any(parent.op == "constant" for parent in parents[1:]):
            new = replace(new, parents=(parents[0], *(_made_of(parents[0], parent) for parent in parents[1:])))
        made[id(value)] = new
    return [made[id(output)] for output in outputs]


def _added(joined: Value) -> Value:
    """Return a concatenation with constants as one of values with room for them, to which they are added."""
    axis = joined.attributes["axis"]
    parts: list[Value] = []
    room = 0
    for parent in joined.parents:
        if parent.op != "constant":
            parts.append(_widened(parent, axis, room, 0))
            room = 0
        else:
            room += parent.shape[axis]
    parts[-1] = _widened(parts[-1], axis, 0, room)
    low, high = (min(part.low.min() for part in parts), max(part.high.max() for part in parts))
    made = replace(joined, parents=tuple(parts), low=np.array(min(low, 0)), high=np.array(max(high, 0)))
    made = parts[0] if len(parts) == 1 else made
    zeros = [np.broadcast_to(parent.low if parent.op == "constant" else 0, parent.shape) for parent in joined.parents]
    add = compressed(np.concatenate(zeros, axis))
    if not add.any():
        return made
    tensors = {"multiplier": np.array(1), "add": add, "shift": np.array(0)}
    limits = {"lo": int(joined.low.min()), "hi": int(joined.high.max())}
    return replace(joined, op="offset", parents=(made,), tensors=tensors, attributes=limits)


def _made_of(mask: Value, part: Value) -> Value:
    """Return a constant as a value, which takes of a mask only its batch."""
    if part.op != "constant":
        return part
    wide = spread(mask, part.where, part.shape) if part.low.ndim else mask
    tensors = {"multiplier": np.array(0), "add": part.low, "shift": np.array(0)}
    limits = {"lo": int(part.low.min()), "hi": int(part.high.max())}
    return Value(
        "offset", (wide,), wide.shape, part.where, low=part.low, high=part.high, attributes=limits, tensors=tensors
    )


def _widened(value: Value, axis: int, front: int, behind: int) -> Value:
    """Return a value with zeros along one axis."""
    if not front + behind:
        return value
    pairs = [[front, behind] if k == axis else [0, 0] for k in range(len(value.shape))]
    shape = tuple(n + low + high for n, (low, high) in zip(value.shape, pairs, strict=True))
    low, high = np.array(min(int(value.low.min()), 0)), np.array(max(int(value.high.max()), 0))
    return Value("pad", (value,), shape, value.where, low=low, high=high, attributes={"padding": pairs})
