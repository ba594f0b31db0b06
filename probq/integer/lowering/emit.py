"""Symbolic values become the nodes of an integer model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from probq.integer import Node
from probq.integer.lowering.composed.constants import with_constants_added
from probq.integer.lowering.operations.bounds import check_bound, is_only_rescaled, leads_to_rounding
from probq.integer.lowering.operations.elementwise import MOST_IDS
from probq.integer.lowering.operations.values import MOVED, Value, values_of
from probq.integer.ports.inputs import argument_of
from probq.utils.errors import ProbqError

# What becomes of values that are no operations of integer models.
EMITTED = MappingProxyType({"scaled": "multiply", "offset": "requantize", "limited": "clip"})
SOURCE = ("index", "scale", "lo", "hi", "start", "step")  # attributes in which two readings of the input may differ
NAMED = ("linear", "conv", "embedding", "requantize", "table", "product", "matmul")  # after their layer


def emit_nodes(outputs: Sequence[Value], inputs: Mapping[str, str]) -> tuple[list[Node], list[str]]:
    """Return the integer model's nodes, each after those it needs, and the names of those that give its outputs.

    Inputs come first, in the order of the network's arguments.

    Args:
        outputs: the values that the model gives.
        inputs: what the model calls each of the network's inputs, by the origin that its values have.
    """
    emitter = _Emitter(inputs)
    nodes, names = emitter.emit(with_constants_added(outputs))
    if not emitter.sources:
        raise ProbqError("the network's output does not depend on its input; there is nothing to lower")
    nodes = [_as_read(node, nodes) for node in nodes]
    order = list(inputs.values())
    nodes.sort(key=lambda node: order.index(argument_of(node)) if node.op == "input" else len(order))
    return nodes, names


class _Emitter:
    """An emitter gives names to nodes, which are those of one model, bodies of loops included."""

    def __init__(self, inputs: Mapping[str, str]) -> None:
        self.inputs = inputs
        self.names: dict[int, str] = {}
        self.taken: dict[str, int] = {}
        self.sources: dict[tuple[str, ...], int] = {}

    def emit(self, outputs: Sequence[Value], begins: Sequence[Value] = ()) -> tuple[list[Node], list[str]]:
        """Return the nodes that values need, and the names of these.

        Args:
            outputs: the values.
            begins: of the body of a loop, what it begins with, which stands in front.
        """
        nodes: list[Node] = []
        for value in (*begins, *values_of(outputs)):
            if value not in begins or id(value) not in self.names:
                self._add(nodes, value, bool(begins))
        for output in outputs:
            check_bound(output, then_rounded=False)
        return nodes, [self.names[id(output)] for output in outputs]

    def _add(self, nodes: list[Node], value: Value, inside: bool) -> None:
        _check_value(value)
        if is_only_rescaled(value):
            self.names[id(value)] = self.names[id(value.parents[0])]
            return
        key = (value.where, *(str(value.attributes.get(name)) for name in SOURCE))
        if value.op == "input" and inside:
            raise ProbqError(f"{value.where} enters a recurrence at every step; let layers in front of it read it")
        if value.op == "input" and key in self.sources:
            place = self.sources[key]
            nodes[place] = _for_all(nodes[place], value)
            self.names[id(value)] = nodes[place].name
            return
        op = EMITTED.get(value.op, value.op)
        base = (value.quantizer if op in NAMED else "") or op  # a network that is one layer has no name
        base = self.inputs[value.where] if op == "input" else base
        self.taken[base] = self.taken.get(base, 0) + 1
        name = self.names[id(value)] = base if self.taken[base] == 1 else f"{base}@{self.taken[base]}"
        attributes, body = dict(value.attributes), tuple[Node, ...]()
        if op == "input":
            self.sources[key] = len(nodes)
            attributes |= {} if name == base else {"argument": base}
        if value.body is not None:
            parts = value.body
            inner, (output, *after) = self.emit([parts.output, *parts.ends], [parts.item, *parts.states])
            attributes, body = attributes | {"output": output, "next": after}, tuple(inner)
        parents = tuple(self.names[id(p)] for p in value.parents)
        tensors, packing = dict(value.tensors), dict(value.packing)
        nodes.append(Node(name, op, parents, attributes, tensors, packing, value.bound, body))


def _for_all(node: Node, value: Value) -> Node:
    """Return an input's node for one more that reads it.

    Indices are those that the smallest of several embeddings has, too.
    """
    counts = [part["count"] for part in (node.attributes, value.attributes) if "count" in part]
    return replace(node, attributes={**node.attributes, "count": min(counts)}) if counts else node


def _as_read(node: Node, nodes: Sequence[Node]) -> Node:
    """Return an input of ids, of which embeddings read parts, with the rows of the largest of them as its count."""
    if node.op != "input" or node.attributes.get("count") != MOST_IDS:
        return node
    names, counts = {node.name}, list[int]()
    for other in nodes:
        if names.isdisjoint(other.inputs):
            continue
        if other.op in MOVED:
            names.add(other.name)
        elif other.op != "clip":
            return node
        else:
            counts.append(other.attributes["hi"] + 1)
    return replace(node, attributes={**node.attributes, "count": max(counts)}) if counts else node


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
