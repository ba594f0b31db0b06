"""Softmax and normalisation become sums, tables, a corrected root and one division of integers in ONNX."""

from dataclasses import replace

import numpy as np

from probq.export.onnx.convolution import sliced
from probq.export.onnx.graph import Edge, Graph, integer_type
from probq.export.onnx.packed_parameters import parameter
from probq.integer import Node
from probq.integer.normalisers.meaning import largest
from probq.integer.normalisers.quotient import quotient_ends
from probq.integer.packing import smallest
from probq.integer.ranges import Range


def softmax(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    """Add `floor(2^bits e / s + 1/2)`, the exponentials looked up, in 64 bits."""
    _, e = _exponentials(graph, node, inputs[0])
    total = _total(graph, e)
    numerator = graph.node("Add", [_times(graph, e, 2 << node.attributes["bits"]), total])
    name = graph.node("Div", [numerator, _times(graph, total, 2)])
    return _narrowed(graph, name, reached)


def log_softmax(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    """Add the difference to the maximum less the logarithm of the sum, that of its highest bit and of its mantissa."""
    below, e = _exponentials(graph, node, inputs[0])
    total, size = graph.cast(_total(graph, e), "uint64"), len(node.tensors["logarithms"])
    places = graph.constant(np.arange(1, len(node.tensors["octaves"])), "uint64")
    above = graph.cast(graph.node("BitShift", [total, places], direction="RIGHT"), "bool")
    highest = _total(graph, graph.cast(above, "int64"))
    scaled = graph.node("Mul", [total, graph.constant(size, "uint64")])
    mantissa = graph.node("BitShift", [scaled, graph.cast(highest, "uint64")], direction="RIGHT")
    mantissa = graph.node("Sub", [graph.cast(mantissa, "int64"), graph.constant(size, "int64")])
    logs = [_looked_up(graph, node, name, at) for name, at in (("octaves", highest), ("logarithms", mantissa))]
    name = _times(graph, graph.cast(below, "int64"), -node.attributes["factor"])
    return _narrowed(graph, graph.node("Sub", [name, graph.node("Add", logs)]), reached)


def normalise(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    """Add the quotient of each distance from the mean and the root, made positive by a multiple of the divisor."""
    x, spec, count = graph.integers(inputs[0], "int64").name, node.attributes, reached.shape[-1]
    squares = _times(graph, _total(graph, graph.node("Mul", [x, x])), count)
    distances = _times(graph, x, count)
    if spec["centred"]:
        mean = _total(graph, x)
        squares = graph.node("Sub", [squares, graph.node("Mul", [mean, mean])])
        distances = graph.node("Sub", [distances, mean])
    variance = _times(graph, squares, 4 ** spec["root"])
    root = _root(graph, graph.node("Add", [variance, graph.constant(spec["eps"], "int64")]))
    limit = largest(count, spec["bits"])
    numerator = _times(graph, distances, 2 ** (spec["bits"] + spec["root"] + 1))
    numerator = graph.node("Add", [numerator, _times(graph, root, 2 * limit + 1)])
    name = graph.node("Div", [numerator, _times(graph, root, 2)])
    end = 2 * limit + 1  # the root is no less than half of the real one, which no distance exceeds more
    type = integer_type(end)
    name = graph.node("Sub", [graph.cast(name, type), graph.constant(limit, type)])
    return graph.limited(Edge(name, type, 0, -end, end, reached.shape), reached.low, reached.high)


def quotient(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    """Add the quotient of two values, whose operator rounds towards zero, in 64 bits."""
    (x, d), spec = inputs, node.attributes
    name, divisor = (graph.integers(each, "int64").name for each in (x, d))
    if d.low <= 0 <= d.high:
        some = graph.cast(graph.cast(divisor, "bool"), "int64")
        divisor = graph.node("Add", [divisor, graph.node("Sub", [graph.constant(1, "int64"), some])])
    if d.low < 0:
        sign = graph.node("Sub", [graph.constant(1, "int64"), _times(graph, _negative(graph, divisor), 2)])
        name, divisor = (graph.node("Mul", [each, sign]) for each in (name, divisor))
    doubled = _times(graph, divisor, 2 << spec["down"])
    numerator = graph.node("Add", [_times(graph, name, 2 << spec["up"]), _times(graph, divisor, 1 << spec["down"])])
    name = graph.node("Div", [numerator, doubled])
    name = graph.node("Sub", [name, _negative(graph, _remainder(graph, numerator, name, doubled))])
    low, high = quotient_ends((x.low, x.high), (d.low, d.high), spec["up"])
    clipped = graph.limited(Edge(name, "int64", 0, low, high, reached.shape), spec["lo"], spec["hi"])
    return _narrowed(graph, clipped.name, reached)


def _exponentials(graph: Graph, node: Node, x: Edge) -> tuple[str, str]:
    """Return how far each number is below the maximum, and its exponential in 64 bits."""
    x = graph.integers(x)
    type = integer_type(x.low, x.high, x.high - x.low)
    most, name = (graph.integers(replace(x, name=name), type).name for name in (_maximum(graph, x), x.name))
    below = Edge(graph.node("Sub", [most, name]), type, 0, 0, x.high - x.low, x.shape)
    size, dropped = len(node.tensors["fine"]), node.attributes["dropped"]
    high = graph.node("Div", [below.name, graph.constant(size, type)])
    low = graph.node("Sub", [below.name, graph.node("Mul", [high, graph.constant(size, type)])])
    index = Edge(high, type, 0, 0, (x.high - x.low) // size, x.shape)
    places = ("coarse", graph.limited(index, None, len(node.tensors["coarse"]) - 1).name), ("fine", low)
    product = graph.node("Mul", [_looked_up(graph, node, *place) for place in places])
    product = graph.node("Add", [product, graph.constant(1 << dropped >> 1, "int64")])
    return below.name, graph.node("Div", [product, graph.constant(1 << dropped, "int64")])


def _maximum(graph: Graph, x: Edge) -> str:
    """Add the maximum along the last axis, whose operator takes the axes in another way from opset 18 on.

    In 64 bits, which that compares wrongly, it is the larger one of both halves, again and again.
    """
    name, count = x.name, x.shape[-1]
    while x.type == "int64" and count > 1:
        half = -(-count // 2)
        ends = ((0, half), (count - half, count))
        first, last = (sliced(graph, name, [start], [end], [len(x.shape)]) for start, end in ends)
        name, count = graph.larger(first, last, x.type), half
    if x.type == "int64":
        return name
    if graph.packed:
        return graph.node("ReduceMax", [name, graph.constant([-1], "int64")], keepdims=1)
    return graph.node("ReduceMax", [name], axes=[-1], keepdims=1)


def _total(graph: Graph, name: str) -> str:
    return graph.node("ReduceSum", [name, graph.constant([-1], "int64")], keepdims=1)


def _times(graph: Graph, name: str, factor: int) -> str:
    return graph.node("Mul", [name, graph.constant(factor, "int64")]) if factor != 1 else name


def _looked_up(graph: Graph, node: Node, table: str, index: str) -> str:
    entries = node.tensors[table]
    return graph.node("Gather", [parameter(graph, entries, "int64", smallest(entries)), index], axis=0)


def _root(graph: Graph, name: str) -> str:
    """Add `floor(sqrt(v))` of int64 below 2^62: the root in float64, off by less than 1, is corrected by integers."""
    one = graph.constant(1, "int64")
    root = graph.cast(graph.node("Sqrt", [graph.cast(name, "double")]), "int64")
    root = graph.node("Sub", [root, _negative(graph, _rest(graph, name, root))])
    above = graph.node("Add", [root, one])
    return graph.node("Sub", [above, _negative(graph, _rest(graph, name, above))])


def _rest(graph: Graph, name: str, root: str) -> str:
    return graph.node("Sub", [name, graph.node("Mul", [root, root])])


def _remainder(graph: Graph, x: str, quotient: str, divisor: str) -> str:
    return graph.node("Sub", [x, graph.node("Mul", [quotient, divisor])])


def _negative(graph: Graph, name: str) -> str:
    """Add 1 where an int64 is negative, else 0: its highest bit."""
    sign = graph.node("BitShift", [graph.cast(name, "uint64"), graph.constant(63, "uint64")], direction="RIGHT")
    return graph.cast(sign, "int64")


def _narrowed(graph: Graph, name: str, reached: Range) -> Edge:
    """Return an int64 tensor in the narrowest type that holds its range."""
    type = integer_type(reached.low, reached.high)
    name = graph.cast(name, type) if type != "int64" else name
    return Edge(name, type, 0, reached.low, reached.high, reached.shape)
