"""A loop becomes a `Scan`, and a switch an `If` for each branch; their bodies take parameters from the graph around.

A branch is computed for those examples of the batch that chose it, and not at all where there are none.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from probq.export.onnx.graph import Edge, Graph, integer_type, names_read, tensor_type
from probq.integer import Node
from probq.integer.loops.body import after, beginning, first_states, sequences, states
from probq.integer.ranges import Range
from probq.utils.optional_import import require

Edges = dict[str, Edge]


class Begun(NamedTuple):
    """This is a loop or a branch whose body is to follow.

    Attributes:
        around: ONNX nodes of the graph around it.
        edges: what the body begins with, to which its nodes are added.
        reads: edges of the graph around it that it takes: the sequences of a loop, the values of a branch.
        own: edges of the body that it begins with: states, then items.
    """

    around: list[Any]
    edges: Edges
    reads: list[Edge]
    own: list[Edge]


def begin_scan(graph: Graph, node: Node, inputs: list[Edge], found: Mapping[str, Range]) -> Begun:
    """Return what the body of a loop over the axis behind the batch begins with.

    Args:
        graph: in the making; it takes the nodes of the body until `end_scan`.
        node: the loop.
        inputs: its inputs.
        found: the ranges of all values.
    """
    over, around = sequences(node, inputs), graph.nodes
    graph.nodes = []
    steps = [replace(x, name=graph.fresh("item"), shape=x.shape[1:]) for x in over]
    begun = [_state(graph, found[state.name]) for state in states(node)]
    edges = beginning(node, steps, {state.name: edge for state, edge in zip(states(node), begun, strict=True)})
    return Begun(around, edges, over, [*begun, *steps])


def end_scan(graph: Graph, node: Node, inputs: list[Edge], reached: Range, body: Begun) -> Edge:
    """Add the loop around its body, which the graph and the edges have been given.

    Args:
        graph: in the making.
        node: the loop.
        inputs: its inputs.
        reached: the range of its outputs.
        body: what `begin_scan` gave.
    """
    given, begun, edges = first_states(node, inputs), body.own[: len(states(node))], body.edges
    ends = [_copied(graph, graph.integers(graph.settled(edges[name]), edge.type)) for (_, name), edge in
            zip(after(node), begun, strict=True)]  # fmt: skip
    output = _copied(graph, graph.settled(edges[node.attributes["output"]]))
    inside, graph.nodes = graph.nodes, body.around
    inside = _without_constants(graph, inside, [edge.name for edge in body.own])
    helper, reverse = require("onnx.helper", "onnx"), int(node.attributes["reverse"])
    ways, over = [_described(parts) for parts in (body.own, (*ends, output))], body.reads
    firsts = [
        graph.integers(graph.settled(given[k]), edge.type).name if k in given else _first(graph, over[0], edge, state)
        for k, (edge, state) in enumerate(zip(begun, states(node), strict=True))
    ]
    names = [graph.fresh("Scan") for _ in (*ends, output)]
    made = helper.make_node(
        "Scan", [*firsts, *(x.name for x in over)], names, names[-1],
        body=helper.make_graph(inside, names[-1], *ways), num_scan_inputs=len(over),
        scan_input_axes=[1] * len(over), scan_input_directions=[reverse] * len(over),
        scan_output_axes=[1], scan_output_directions=[reverse],
    )  # fmt: skip
    graph.nodes.append(made)
    return replace(output, name=names[-1], shape=reached.shape)


def _state(graph: Graph, reached: Range) -> Edge:
    type = integer_type(reached.low, reached.high)
    return Edge(graph.fresh("state"), type, 0, reached.low, reached.high, reached.shape)


def _copied(graph: Graph, x: Edge) -> Edge:
    """Return a tensor with a name of its own, as each output of a body needs one."""
    return replace(x, name=graph.node("Identity", [x.name]))


def _first(graph: Graph, sequence: Edge, state: Edge, node: Node) -> str:
    """Add what a state begins with for each example, zeros unless it has something else."""
    batch = graph.node("Gather", [graph.node("Shape", [sequence.name]), graph.constant([0], "int64")], axis=0)
    shape = graph.node("Concat", [batch, graph.constant(list(state.shape), "int64")], axis=0)
    value = require("onnx.numpy_helper", "onnx").from_array(np.zeros(1, state.type))
    zeros = graph.node("ConstantOfShape", [shape], value=value)
    first = node.tensors.get("first")
    return zeros if first is None else graph.node("Add", [zeros, graph.constant(first, state.type)])


class Choice(NamedTuple):
    """This is a switch of which branches are to follow.

    Attributes:
        choice: name of the number of each example's branch.
        y: zeros in the place of what is chosen.
    """

    choice: str
    y: Edge


def begin_switch(graph: Graph, choice: Edge, reached: Range) -> Choice:
    """Return a choice between branches for each example, to be added; no branch is computed that no example chose.

    Args:
        graph: in the making.
        choice: the number of each example's branch.
        reached: the range of what is chosen.
    """
    kind = integer_type(reached.low, reached.high)
    number = graph.node("Reshape", [graph.integers(choice, "int32").name, graph.constant([-1], "int64")])
    batch, sizes = graph.node("Shape", [number]), graph.constant(list(reached.shape), "int64")
    value = require("onnx.numpy_helper", "onnx").from_array(np.zeros(1, kind))
    shape = graph.node("Concat", [batch, sizes], axis=0) if reached.shape else batch
    name = graph.node("ConstantOfShape", [shape], value=value)
    return Choice(number, Edge(name, kind, 0, reached.low, reached.high, reached.shape))


def begin_branch(graph: Graph, choice: str, number: int, values: Edges) -> tuple[str, Begun]:
    """Return the examples that chose a branch, and what it begins with of them.

    Args:
        graph: in the making; it takes the nodes of the branch until `end_branch`.
        choice: name of the number of each example's branch.
        number: of this one.
        values: what branches read.
    """
    rows = graph.node("NonZero", [graph.node("Equal", [choice, graph.constant(number, "int32")])])
    rows = graph.node("Reshape", [rows, graph.constant([-1], "int64")])
    around, graph.nodes = graph.nodes, []
    edges = {name: replace(x, name=graph.node("Gather", [x.name, rows], axis=0)) for name, x in values.items()}
    return rows, Begun(around, edges, list(values.values()), [])


def end_branch(graph: Graph, y: Edge, rows: str, result: str, body: Begun) -> Edge:
    """Add the `If` that puts a branch's values for some examples where they belong, unless there are none.

    Args:
        graph: in the making.
        y: what was chosen before.
        rows: the examples that chose the branch.
        result: name of the branch's last node.
        body: what `begin_branch` gave.
    """
    own = graph.integers(graph.settled(body.edges[result]), y.type)
    places = graph.node("Reshape", [rows, graph.constant([-1, 1], "int64")])
    then = replace(y, name=graph.node("ScatterND", [y.name, places, own.name]))
    inside, graph.nodes = graph.nodes, []
    otherwise = replace(y, name=graph.node("Identity", [y.name]))
    passed, graph.nodes = graph.nodes, body.around
    inside = _without_constants(graph, inside, [rows, y.name, *(x.name for x in body.reads)])
    some = graph.cast(graph.node("Shape", [rows]), "bool")
    make = require("onnx.helper", "onnx").make_graph
    taken: dict[str, Any] = {
        "then_branch": make(inside, then.name, [], _described([then])),
        "else_branch": make(passed, otherwise.name, [], _described([otherwise])),
    }
    return replace(y, name=graph.node("If", [some], **taken))


def _described(edges: Iterable[Edge]) -> list[Any]:
    """Return what a graph within a graph says of its inputs or outputs."""
    info = require("onnx.helper", "onnx").make_tensor_value_info
    return [info(x.name, tensor_type(x.type), ["batch", *x.shape]) for x in edges]


def _without_constants(graph: Graph, inside: list[Any], begun: list[str]) -> list[Any]:
    """Return the nodes of a body that depend on what it begins with; the others go to the graph around it."""
    changing, kept = set(begun), []
    for node in inside:
        if changing.intersection(names_read(node)):
            changing.update(node.output)
            kept.append(node)
        else:
            graph.nodes.append(node)
    return kept
