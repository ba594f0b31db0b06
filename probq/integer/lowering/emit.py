"""Symbolic values become the nodes of an integer model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from probq.integer import Node
from probq.integer.lowering.composed.constants import with_constants_added
from probq.integer.lowering.operations.bounds import check_bound, is_only_rescaled, leads_to_rounding
from probq.integer.lowering.operations.values import Value, values_of
from probq.integer.ports.inputs import argument_of
from probq.utils.errors import ProbqError

# What becomes of the values of `probq.integer.lowering.operations.arithmetic`.
EMITTED = MappingProxyType({"scaled": "multiply", "offset": "requantize", "sign": "clip"})
SOURCE = ("index", "scale", "lo", "hi", "start", "step")  # attributes in which two readings of the input may differ
NAMED = ("linear", "conv", "embedding", "requantize", "table", "product", "matmul")  # after their layer


def emit_nodes(outputs: Sequence[Value], inputs: Mapping[str, str]) -> tuple[list[Node], list[str]]:
    """Return the integer model's nodes, each after those it needs, and the names of those that give its outputs.

    Inputs come first, in the order of the network's arguments.

    Args:
        outputs: the values that the model gives.
        inputs: what the model calls each of the network's inputs, by the origin that its values have.
    """
    nodes: list[Node] = []
    names: dict[int, str] = {}
    taken: dict[str, int] = {}
    sources: dict[tuple[str, ...], int] = {}
    outputs = with_constants_added(outputs)
    for value in values_of(outputs):
        _check_value(value)
        if is_only_rescaled(value):
            names[id(value)] = names[id(value.parents[0])]
            continue
        key = (value.where, *(str(value.attributes.get(name)) for name in SOURCE))
        if value.op == "input" and key in sources:
            place = sources[key]
            nodes[place] = _for_all(nodes[place], value)
            names[id(value)] = nodes[place].name
            continue
        op = EMITTED.get(value.op, value.op)
        base = (value.quantizer if op in NAMED else "") or op  # a network that is one layer has no name
        base = inputs[value.where] if op == "input" else base
        taken[base] = taken.get(base, 0) + 1
        names[id(value)] = base if taken[base] == 1 else f"{base}@{taken[base]}"
        own = dict(value.attributes)
        if op == "input":
            sources[key] = len(nodes)
            own |= {} if names[id(value)] == base else {"argument": base}
        nodes.append(
            Node(
                names[id(value)],
                op,
                tuple(names[id(p)] for p in value.parents),
                own,
                dict(value.tensors),
                dict(value.packing),
                value.bound,
            )
        )
    for output in outputs:
        check_bound(output, then_rounded=False)
    if not sources:
        raise ProbqError("the network's output does not depend on its input; there is nothing to lower")
    order = list(inputs.values())
    nodes.sort(key=lambda node: order.index(argument_of(node)) if node.op == "input" else len(order))
    return nodes, [names[id(output)] for output in outputs]


def _for_all(node: Node, value: Value) -> Node:
    """Return an input's node for one more that reads it.

    Indices are those that the smallest of several embeddings has, too.
    """
    counts = [part["count"] for part in (node.attributes, value.attributes) if "count" in part]
    return replace(node, attributes={**node.attributes, "count": min(counts)}) if counts else node


def _check_value(value: Value) -> None:
    """Raise unless a value is an integer that a node can give."""
    if value.attributes.get("refused"):
        raise ProbqError(
            f"{value.where} cannot be lowered to integers: its limits are not multiples of the value's step, and no "
            "layer's rounding follows; use limits such as 0, 1 or 6"
        )
    if value.op == "constant":
        raise ProbqError(
            f"{value.where} cannot be lowered to integers: it computes with a constant that a part of a tensor was set "
            "to; compute with the constant itself"
        )
    if value.op == "real":
        raise ProbqError("an operation works on the network's own input before any layer; do it outside of the network")
    for parent in value.parents:
        check_bound(parent, leads_to_rounding(value))
