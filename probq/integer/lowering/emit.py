"""Symbolic values become the nodes of an integer model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType

from probq.integer import Node
from probq.integer.lowering.operations.bounds import check_bound, is_only_rescaled, leads_to_rounding
from probq.integer.lowering.operations.values import Value
from probq.utils.errors import ProbqError

# What becomes of the values of `probq.integer.lowering.operations.arithmetic`.
EMITTED = MappingProxyType({"scaled": "multiply", "offset": "requantize"})
SOURCE = ("index", "scale", "lo", "hi", "start", "step")  # attributes in which two readings of the input may differ
NAMED = ("linear", "conv", "embedding", "requantize", "table", "product", "matmul")  # after their layer


def emit_nodes(output: Value) -> tuple[list[Node], str]:
    """Return the integer model's nodes, each after those it needs, and the name of the last."""
    nodes: list[Node] = []
    names: dict[int, str] = {}
    taken: dict[str, int] = {}
    sources: dict[tuple[str, ...], int] = {}
    for value in _in_order(output):
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
        taken[base] = taken.get(base, 0) + 1
        names[id(value)] = base if taken[base] == 1 else f"{base}@{taken[base]}"
        if op == "input":
            sources[key] = len(nodes)
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
    check_bound(output, then_rounded=False)
    _check_one([where for where, *_ in sources])
    return nodes, names[id(output)]


def _in_order(output: Value) -> Iterator[Value]:
    """Yield the values that an output is made of, each once, after those that it needs itself."""
    done: set[int] = set()
    stack: list[tuple[Value, bool]] = [(output, False)]
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


def _for_all(node: Node, value: Value) -> Node:
    """Return an input's node for one more that reads it.

    Indices are those that the smallest of several embeddings has, too.
    """
    counts = [part["count"] for part in (node.attributes, value.attributes) if "count" in part]
    return replace(node, attributes={**node.attributes, "count": min(counts)}) if counts else node


def _check_one(sources: list[str]) -> None:
    """Raise unless one input, in one scale, is all that the nodes read."""
    names = sorted({where.rpartition(" ")[2] for where in sources})
    if len(names) > 1:
        raise ProbqError(
            f"the network computes with {' and '.join(names)}, but an integer model has one input; join numbers "
            "outside of the network and slice them inside, and embed indices outside of it"
        )
    if len(sources) != 1:
        raise ProbqError(
            "the network's input enters layers with different scales or widths, so it cannot be lowered; give those "
            "layers one network_input ladder and one scale, or let one layer read the input"
        )


def _check_value(value: Value) -> None:
    """Raise unless a value is an integer that a node can give."""
    if value.attributes.get("refused"):
        raise ProbqError(
            f"{value.where} cannot be lowered to integers: its limits are not multiples of the value's step, and no "
            "layer's rounding follows; use limits such as 0, 1 or 6"
        )
    if value.op == "real":
        raise ProbqError("an operation works on the network's own input before any layer; do it outside of the network")
    for parent in value.parents:
        check_bound(parent, leads_to_rounding(value))
