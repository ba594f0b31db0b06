"""Every other operation of an integer model is in ONNX's integer operators, exact for any range below 2^63."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from probq.export.onnx.convolution import sliced
from probq.export.onnx.data_movement import argmax, pad, piece, repeat, table, where
from probq.export.onnx.float_rounding import INT32, IntegerRounding, floored_form
from probq.export.onnx.graph import Edge, Graph, integer_type, zero_point
from probq.export.onnx.layers import layer, levels
from probq.export.onnx.normalisers import log_softmax, normalise, quotient, softmax
from probq.export.onnx.packed_parameters import parameter
from probq.integer import Node
from probq.integer.ranges import Range

FLOATS = (("float32", 2**24), ("float64", 2**53))  # integers up to which each holds all

Operation = Callable[[Graph, Node, list[Edge], Range], Edge]


def input_type(node: Node) -> str:
    """Return the numpy type of the graph's input: uint8, int8 or wider as the levels need; int64 for indices."""
    if node.attributes.get("index"):
        return "int64"
    start, step = node.attributes.get("start", 0), node.attributes.get("step", 1)
    low, high = (start + step * node.attributes[end] for end in ("lo", "hi"))
    if low >= 0 and high <= 255:
        return "uint8"
    return "int8" if low >= -128 and high <= 127 else integer_type(low, high)


def _input(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    type, zero = input_type(node), zero_point(reached.low, reached.high)
    name = graph.inputs[node.name]
    if type == "int8":
        name, type = graph.cast(name, "int32"), "int32"
    edge = Edge(name, type, 0, reached.low, reached.high, reached.shape)
    return edge if zero is None or node.attributes.get("index") else _narrowed(graph, edge)


def _narrowed(graph: Graph, x: Edge) -> Edge:
    """Return the value as uint8 where that holds it, as it is otherwise."""
    return graph.octets(x) or x


def _embedding(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    zero, weight = zero_point(reached.low, reached.high), node.tensors["weight"]
    type = integer_type(reached.low, reached.high) if zero is None else "uint8"
    table = parameter(graph, weight, type, node.packing_of("weight"), zero or 0)
    name = graph.node("Gather", [table, graph.integers(inputs[0]).name], axis=0)
    return Edge(name, type, zero or 0, reached.low, reached.high, reached.shape)


def _requantize(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    """Compute `clip((x m + a) >> n, lo, hi)`.

    It is made non-negative by a multiple of `2^n`, shifted as unsigned, and brought back.

    With `v = x m + a >= -K 2^n`: `v >> n = ((v + K 2^n) >> n) - K`. Where float32 is certain to find the same codes, it
    does: ONNX Runtime shifts numbers one by one.
    """
    x = inputs[0]
    parts = np.broadcast_arrays(*(np.atleast_1d(node.tensors[name]) for name in ("multiplier", "add", "shift")))
    floored = _floored(graph, node, x, parts)
    if floored is not None:
        return levels(graph, floored, node)
    m, a, n = (part.astype(object) for part in parts)  # integers without end, not of 64 bits
    products = np.stack([m * x.low, m * x.high])
    back = np.maximum(-((products + a).min(0) >> n), 0)
    added = a + (back << n)
    shifted = (products + a) >> n
    steps = (m, products, added, products + added, back, shifted)
    type = integer_type(x.low, x.high, *(number for step in steps for number in step.reshape(-1)))
    name = graph.integers(x, type).name
    for op, numbers, neutral in (("Mul", m, 1), ("Add", added, 0)):
        name = name if (numbers == neutral).all() else graph.node(op, [name, _compact(graph, numbers, type)])
    if n.any():
        name = graph.cast(name, "u" + type)
        name = graph.node("BitShift", [name, _compact(graph, n, "u" + type)], direction="RIGHT")
        name = graph.cast(name, type)
    name = graph.node("Sub", [name, _compact(graph, back, type)]) if back.any() else name
    reach = shifted.reshape(-1)
    unclipped = Edge(name, type, 0, min(reach, default=0), max(reach, default=0), x.shape)
    codes = graph.limited(unclipped, node.attributes["lo"], node.attributes["hi"])
    return _narrowed(graph, levels(graph, codes, node))


def _floored(graph: Graph, node: Node, x: Edge, parts: Sequence[np.ndarray]) -> Edge | None:
    """Add the codes of a requantization to at most 8 bits as a floor in float32, where that is certified.

    Behind the floor, `QuantizeLinear` only clips to uint8.
    """
    lo, hi = node.attributes["lo"], node.attributes["hi"]
    zero = max(-lo, 0)
    if x.type == "uint8" or max(-x.low, x.high) > INT32 or hi < 0 or hi + zero > 255:
        return None
    multiplier, add, shift = (part.astype(np.int64).reshape(-1) for part in parts)
    low, high = (np.full(len(multiplier), end) for end in (x.low, x.high))
    form = floored_form(IntegerRounding(multiplier, add, shift, lo, hi), low, high)
    if form is None:
        return None
    name = graph.cast(graph.integers(x).name, "float32")
    for op, numbers in (("Mul", form.scale), ("Add", form.add)):
        name = graph.node(op, [name, _compact(graph, numbers.reshape(parts[0].shape), "float32")])
    ends = [graph.constant(1, "float32"), graph.constant(zero, "uint8")]
    name = graph.node("QuantizeLinear", [graph.node("Floor", [name]), *ends])
    limits = (lo + zero if lo + zero > 0 else None, hi + zero if hi + zero < 255 else None)
    return graph.settled(Edge(name, "uint8", zero, lo, hi, x.shape, limits))


def _compact(graph: Graph, numbers: np.ndarray, type: str) -> str:
    """Return a constant, as one number where all are equal."""
    one = numbers.size and (numbers == numbers.reshape(-1)[0]).all()
    return graph.constant(numbers.reshape(-1)[0] if one else numbers, type)


def _multiply(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    multiplier = node.tensors["multiplier"]
    type = integer_type(reached.low, reached.high, inputs[0].low, inputs[0].high, *multiplier.reshape(-1).tolist())
    name = graph.node("Mul", [graph.integers(inputs[0], type).name, _compact(graph, multiplier, type)])
    return Edge(name, type, 0, reached.low, reached.high, reached.shape)


def _clip(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    return graph.limited(inputs[0], node.attributes["lo"], node.attributes["hi"])


def _max_pool(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    """Add `MaxPool` on uint8 where ONNX Runtime has it, else maxima of slices, one axis after another."""
    spec, x = node.attributes, inputs[0]
    spatial = len(spec["kernel"])
    pads = pool_pads(spec, x.shape[-spatial:])
    plain = x.type == "uint8" and spatial <= 3 and spatial == len(x.shape) - 1 and not graph.padded(x.name)
    if plain and all(pad < size for pad, size in zip(pads, spec["kernel"] * 2, strict=True)):
        window = {"kernel_shape": spec["kernel"], "strides": spec["stride"], "dilations": spec["dilation"]}
        return replace(x, name=graph.node("MaxPool", [x.name], pads=pads, **window), shape=reached.shape)
    x = x if x.type == "uint8" else graph.integers(x, integer_type(x.low, x.high, x.high - x.low))
    name = _windows(graph, x, spec, pads, x.low + x.zero, lambda a, b: graph.larger(a, b, x.type), reached.shape)
    return replace(x, name=name, shape=reached.shape)


def _windows(
    graph: Graph,
    x: Edge,
    spec: Mapping[str, list[int]],
    pads: list[int],
    fill: int,
    join: Callable[[str, str], str],
    shape: tuple[int, ...],
) -> str:
    """Add a join of all elements of every window, one axis after another.

    A `Pad` is never next to a `MaxPool`, because ONNX Runtime's optimizer would merge the two where it must not.
    """
    name, spatial = x.name, len(spec["kernel"])
    first = len(x.shape) + 1 - spatial
    dilation = spec.get("dilation", [1] * spatial)
    if any(pads):
        ends = [0] * first + pads[:spatial] + [0] * first + pads[spatial:]
        name = graph.node("Pad", [name, graph.constant(ends, "int64"), graph.constant(fill, x.type)])
    for axis in range(spatial):
        kernel, stride = spec["kernel"][axis], spec["stride"][axis]
        reach = (shape[axis - spatial] - 1) * stride + 1
        starts = [tap * dilation[axis] for tap in range(kernel)]
        taps = [sliced(graph, name, [start], [start + reach], [first + axis], [stride]) for start in starts]
        name = taps[0]
        for tap in taps[1:]:
            name = join(name, tap)
    return name


def pool_pads(spec: Mapping[str, Any], sizes: tuple[int, ...]) -> list[int]:
    """Return all lower ends, then all upper ones; what rounding the size up needs is padding too."""
    lows, highs = [], []
    for n, k, s, d, (low, high) in zip(
        sizes, spec["kernel"], spec["stride"], spec["dilation"], spec["padding"], strict=True
    ):
        lows.append(low)
        if spec["ceil_mode"]:
            free = n + low + high - d * (k - 1) - 1
            count = -(-free // s) + 1
            count -= (count - 1) * s >= n + low
            high = max(high, (count - 1) * s + d * (k - 1) + 1 - n - low)
        highs.append(high)
    return lows + highs


def _sum_pool(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    spec, type = node.attributes, integer_type(reached.low, reached.high)
    spatial = len(spec["kernel"])
    if list(spec["kernel"]) == list(inputs[0].shape[-spatial:]) and not any(map(any, spec["padding"])):
        return _reduced(graph, inputs[0], list(range(-spatial, 0)), True, reached)
    pads = [low for low, _ in spec["padding"]] + [high for _, high in spec["padding"]]
    x = graph.integers(inputs[0], type)
    name = _windows(graph, x, spec, pads, 0, lambda a, b: graph.node("Add", [a, b]), reached.shape)
    return Edge(name, type, 0, reached.low, reached.high, reached.shape)


def _sum(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    axes = behind_batch(node.attributes["axes"])
    if axes:
        return _reduced(graph, inputs[0], axes, bool(node.attributes["keepdims"]), reached)
    type = integer_type(reached.low, reached.high)
    return Edge(graph.integers(inputs[0], type).name, type, 0, reached.low, reached.high, reached.shape)


def _reduced(graph: Graph, x: Edge, axes: list[int], keep: bool, reached: Range) -> Edge:
    """Add a sum over some axes, in floating point where that holds all partial sums: ONNX Runtime vectorizes that."""
    count = math.prod(x.shape[axis - 1 if axis > 0 else axis] for axis in axes)
    most = count * max(-x.low, x.high)
    type = integer_type(reached.low, reached.high)
    summed = next((real for real, limit in FLOATS if most <= limit), type)
    name = graph.integers(x).name if summed != type else graph.integers(x, type).name
    name = graph.cast(name, summed) if summed != type else name
    name = graph.node("ReduceSum", [name, graph.constant(axes, "int64")], keepdims=int(keep))
    name = graph.cast(name, type) if summed != type else name
    return Edge(name, type, 0, reached.low, reached.high, reached.shape)


def behind_batch(axes: list[int]) -> list[int]:
    """Return the axes of a value with its batch."""
    return [axis + 1 if axis >= 0 else axis for axis in axes]


def _reshape(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    return replace(inputs[0], name=graph.reshape(inputs[0].name, reached.shape), shape=reached.shape)


def _permute(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    axes = [axis % len(reached.shape) + 1 for axis in node.attributes["axes"]]
    name = graph.node("Transpose", [inputs[0].name], perm=[0, *axes])
    return replace(inputs[0], name=name, shape=reached.shape)


def _add(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    return _of_two(graph, "Add", inputs, reached)


def _product(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    return _of_two(graph, "Mul", inputs, reached)


def _of_two(graph: Graph, op: str, inputs: list[Edge], reached: Range) -> Edge:
    """Add an operator on two values, of which the one of fewer axes broadcasts behind the batch."""
    ends = [end for x in inputs for end in (x.low, x.high)]
    type = integer_type(reached.low, reached.high, *ends)
    names = []
    for x in inputs:
        name = graph.integers(x, type).name
        missing = len(reached.shape) - len(x.shape)
        names.append(graph.reshape(name, [1] * missing + list(x.shape)) if missing else name)
    return Edge(graph.node(op, names), type, 0, reached.low, reached.high, reached.shape)


def _matmul(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    partial = inputs[0].shape[-1] * max(-inputs[0].low, inputs[0].high) * max(-inputs[1].low, inputs[1].high)
    type = integer_type(-partial, partial, *(end for x in inputs for end in (x.low, x.high)))
    names = [graph.integers(x, type).name for x in inputs]
    return Edge(graph.node("MatMul", names), type, 0, reached.low, reached.high, reached.shape)


def _concat(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    axis = behind_batch([node.attributes["axis"]])[0]
    type, zero = inputs[0].type, inputs[0].zero
    if any((x.type, x.zero) != (type, zero) for x in inputs):
        type, zero = integer_type(reached.low, reached.high), 0
        inputs = [graph.integers(x, type) for x in inputs]
    name = graph.node("Concat", [x.name for x in inputs], axis=axis)
    return Edge(name, type, zero, reached.low, reached.high, reached.shape)


OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "input": _input, "linear": layer, "conv": layer, "embedding": _embedding, "requantize": _requantize,
        "multiply": _multiply, "clip": _clip, "max_pool": _max_pool, "sum_pool": _sum_pool, "sum": _sum,
        "reshape": _reshape, "permute": _permute, "add": _add, "concat": _concat,
        "table": table, "repeat": repeat, "pad": pad, "slice": piece, "where": where, "argmax": argmax,
        "product": _product, "quotient": quotient, "matmul": _matmul,
        "softmax": softmax, "log_softmax": log_softmax, "normalise": normalise,
    }
)  # fmt: skip
