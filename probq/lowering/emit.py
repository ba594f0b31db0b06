"""From symbolic values to the nodes of an integer model."""

from __future__ import annotations

from types import MappingProxyType

from probq.errors import ProbqError
from probq.integer import Node
from probq.lowering.values import MOST, Value

# What becomes of the values of `probq.lowering.arithmetic`.
EMITTED = MappingProxyType({"scaled": "multiply", "offset": "requantize"})
NAMED = ("linear", "conv", "embedding", "requantize", "table")  # after their layer


def emitted(output: Value) -> tuple[list[Node], str]:
    """The integer model's nodes, each after those it needs, and the name of the last."""
    nodes: list[Node] = []
    names: dict[int, str] = {}
    taken: dict[str, int] = {}
    stack: list[tuple[Value, bool]] = [(output, False)]
    while stack:
        value, ready = stack.pop()
        if id(value) in names:
            continue
        if not ready:
            stack.append((value, True))
            stack.extend((parent, False) for parent in value.parents)
            continue
        _refused(value)
        if value.op == "scaled" and (value.tensors["multiplier"] == 1).all():  # the same integers, worth more or less
            names[id(value)] = names[id(value.parents[0])]
            continue
        op = EMITTED.get(value.op, value.op)
        base = (value.quantizer if op in NAMED else "") or op  # a network that is one layer has no name
        taken[base] = taken.get(base, 0) + 1
        names[id(value)] = base if taken[base] == 1 else f"{base}@{taken[base]}"
        nodes.append(
            Node(
                names[id(value)],
                op,
                tuple(names[id(p)] for p in value.parents),
                dict(value.attributes),
                dict(value.tensors),
                dict(value.packing),
                value.bound,
            )
        )
    if taken.get("input", 0) != 1:
        raise ProbqError(
            "the network's input enters layers with different scales or widths, so it cannot be lowered; give those "
            "layers one network_input ladder and one scale, or let one layer read the input"
        )
    return nodes, names[id(output)]


def _refused(value: Value) -> None:
    if value.attributes.get("refused"):
        raise ProbqError(
            f"{value.where} cannot be lowered to integers: its limits are not multiples of the value's step, and no "
            "layer's rounding follows; use limits such as 0, 1 or 6"
        )
    if value.op == "real":
        raise ProbqError("an operation works on the network's own input before any layer; do it outside of the network")
    if value.bound > MOST:
        raise ProbqError(
            f"{value.where} cannot be lowered: its integers may reach {value.bound:,}, beyond 31 bits; "
            "use narrower widths"
        )
