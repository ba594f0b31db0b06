"""Tables, nearest upsampling, padding, slices and choices become ONNX here."""

from dataclasses import replace

from probq.export.onnx.convolution import sliced
from probq.export.onnx.graph import Edge, Graph, integer_type, zero_point
from probq.export.onnx.packed_parameters import parameter
from probq.integer import Node
from probq.integer.packing import smallest
from probq.integer.ranges import Range, reachable
from probq.utils.errors import ProbqError


def table(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    """Add `table[x - first]` as a `Gather`; entries that nothing reaches are left out."""
    x = inputs[0]
    start, entries = reachable(node, x.low, x.high)
    zero = zero_point(reached.low, reached.high)
    type = integer_type(reached.low, reached.high) if zero is None else "uint8"
    held = parameter(graph, entries, type, smallest(entries), zero or 0)
    kind = "int64" if x.type == "uint8" else x.type
    index = graph.cast(x.name, kind) if kind != x.type else x.name
    if start + x.zero:
        index = graph.node("Sub", [index, graph.constant(start + x.zero, kind)])
    name = graph.node("Gather", [held, index], axis=0)
    return Edge(name, type, zero or 0, reached.low, reached.high, reached.shape)


def repeat(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    """Add a copy of every element as often as the factors say: an axis of their own, expanded, then merged."""
    x, factors = inputs[0], node.attributes["factors"]
    outer = list(x.shape[: len(x.shape) - len(factors)])
    inner = x.shape[len(outer) :]
    apart = outer + [n for size in inner for n in (size, 1)]
    wide = [1, *outer, *(n for pair in zip(inner, factors, strict=True) for n in pair)]
    name = graph.node("Expand", [graph.reshape(x.name, apart), graph.constant(wide, "int64")])
    return replace(x, name=graph.reshape(name, reached.shape), shape=reached.shape)


def pad(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    """Add zeros around the last axes."""
    x, pairs = inputs[0], node.attributes["padding"]
    first = [0] * (len(x.shape) + 1 - len(pairs))
    ends = [*first, *(low for low, _ in pairs), *first, *(high for _, high in pairs)]
    name = graph.node("Pad", [x.name, graph.constant(ends, "int64"), graph.constant(x.zero, x.type)])
    return replace(x, name=name, low=reached.low, high=reached.high, shape=reached.shape)


def piece(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    """Add a slice."""
    spec, x = node.attributes, inputs[0]
    axis = spec["axis"] % len(x.shape) + 1
    name = sliced(graph, x.name, [spec["start"]], [spec["stop"]], [axis], [spec["step"]])
    return replace(x, name=name, shape=reached.shape)


def where(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    """Add a choice between two values."""
    type = integer_type(*(end for x in inputs[1:] for end in (x.low, x.high)))
    names = []
    for x, kind in zip(inputs, (None, type, type), strict=True):
        name = (graph.integers(x) if kind is None else graph.integers(x, kind)).name
        missing = len(reached.shape) - len(x.shape)
        names.append(graph.reshape(name, [1] * missing + list(x.shape)) if missing else name)
    chosen = graph.cast(names[0], "bool")
    name = _sum_of_choices(graph, chosen, *names[1:]) if type == "int64" else graph.node("Where", [chosen, *names[1:]])
    return Edge(name, type, 0, reached.low, reached.high, reached.shape)


def _sum_of_choices(graph: Graph, chosen: str, first: str, second: str) -> str:
    """Add `first c + second (1 - c)`, since no operator is to compare int64, or to merge it by comparisons.

    ONNX Runtime compares int64 wrongly on x86 (see the laboratory page of comparisons).
    """
    share = graph.cast(chosen, "int64")
    rest = graph.node("Sub", [graph.constant(1, "int64"), share])
    return graph.node("Add", [graph.node("Mul", [first, share]), graph.node("Mul", [second, rest])])


def argmax(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    """Add the place of the largest number along an axis, which is the first one where several are."""
    if integer_type(inputs[0].low, inputs[0].high) == "int64":
        raise ProbqError(
            "its numbers take more than 31 bits, which ONNX Runtime may compare wrongly; use narrower widths"
        )
    x = graph.integers(inputs[0], "int32")
    axis = node.attributes["axis"] % len(x.shape) + 1
    name = graph.node("ArgMax", [x.name], axis=axis, keepdims=0, select_last_index=0)
    return Edge(name, "int64", 0, reached.low, reached.high, reached.shape)
