"""Operations between layers are standard floating-point operators in QONNX, on integers below 2^24."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from probq.export.onnx.graph import Graph
from probq.export.onnx.operations import behind_batch, pool_pads
from probq.export.qonnx.graph import Wire, at, bipolar, check_exact, limited, parameter, quant, real, width
from probq.export.qonnx.layers import requantized
from probq.integer import Node
from probq.integer.ranges import Range
from probq.utils.errors import ProbqError

Operation = Callable[[Graph, Node, list[Wire], Range], Wire]


def _input(graph: Graph, node: Node, inputs: list[Wire], reached: Range) -> Wire:
    spec = node.attributes
    if spec.get("index"):
        return Wire("input", 0, reached.low, reached.high, reached.shape)
    exponent = math.frexp(spec["scale"])[1] - 1
    if spec.get("step", 1) != 1:
        if (reached.low, reached.high, spec["step"]) != (-1, 1, 2):
            raise ProbqError("the input's levels are neither consecutive integers nor -1 and 1; export to ONNX or C")
        return Wire(bipolar(graph, "input", exponent), exponent, -1, 1, reached.shape)
    held = width(reached.low, reached.high)
    name = quant(graph, "input", held, exponent)
    if (reached.low, reached.high) != held.limits:
        name = limited(graph, name, exponent, reached.low, reached.high)
    return Wire(name, exponent, reached.low, reached.high, reached.shape)


def _embedding(graph: Graph, node: Node, inputs: list[Wire], reached: Range) -> Wire:
    table = parameter(graph, node.tensors["weight"], 0)
    name = graph.node("Gather", [table, inputs[0].name], axis=0)
    return Wire(name, 0, reached.low, reached.high, reached.shape)


def _requantize(graph: Graph, node: Node, inputs: list[Wire], reached: Range) -> Wire:
    return requantized(graph, node, inputs[0])


def _multiply(graph: Graph, node: Node, inputs: list[Wire], reached: Range) -> Wire:
    """Multiply by constants; one power of two only changes what the tensor's grid is."""
    x, multiplier = inputs[0], node.tensors["multiplier"]
    m = int(multiplier.reshape(-1)[0]) if multiplier.size else 0
    if m > 0 and m & (m - 1) == 0 and (multiplier == m).all():
        return Wire(x.name, x.exponent - (m.bit_length() - 1), reached.low, reached.high, reached.shape)
    name = graph.node("Mul", [x.name, graph.constant(real(multiplier, 0), "float32")])
    return Wire(name, x.exponent, reached.low, reached.high, reached.shape)


def _clip(graph: Graph, node: Node, inputs: list[Wire], reached: Range) -> Wire:
    x = inputs[0]
    name = limited(graph, x.name, x.exponent, node.attributes["lo"], node.attributes["hi"])
    return replace(x, name=name, low=reached.low, high=reached.high)


def _max_pool(graph: Graph, node: Node, inputs: list[Wire], reached: Range) -> Wire:
    spec, x = node.attributes, inputs[0]
    spatial = len(spec["kernel"])
    pads = pool_pads(spec, x.shape[-spatial:])
    name = _as_image(graph, x, spatial)
    if any(pad >= size for pad, size in zip(pads, spec["kernel"] * 2, strict=True)):
        ends = [0, 0, *pads[:spatial], 0, 0, *pads[spatial:]]
        lowest = graph.constant(real(x.low, x.exponent), "float32")
        name, pads = graph.node("Pad", [name, graph.constant(ends, "int64"), lowest]), [0] * (2 * spatial)
    window = {"kernel_shape": spec["kernel"], "strides": spec["stride"], "dilations": spec["dilation"], "pads": pads}
    name = graph.node("MaxPool", [name], **window)
    return replace(x, name=_as_shape(graph, name, x, spatial, reached.shape), shape=reached.shape)


def _sum_pool(graph: Graph, node: Node, inputs: list[Wire], reached: Range) -> Wire:
    """Add `AveragePool` where the count is a power of two, and so the average exact, else a convolution with ones."""
    spec, x = node.attributes, inputs[0]
    spatial, count = len(spec["kernel"]), math.prod(spec["kernel"])
    name, exponent = _as_image(graph, x, spatial), x.exponent
    pads = [low for low, _ in spec["padding"]] + [high for _, high in spec["padding"]]
    window = {"kernel_shape": spec["kernel"], "strides": spec["stride"], "pads": pads}
    if _is_power(count) and all(pad < size for pad, size in zip(pads, spec["kernel"] * 2, strict=True)):
        name, exponent = graph.node("AveragePool", [name], count_include_pad=1, **window), exponent - _log2(count)
    else:
        channels = math.prod(x.shape[:-spatial])
        ones = graph.constant(np.ones((channels, 1, *spec["kernel"])), "float32")
        name = graph.node("Conv", [name, ones], group=channels, **window)
    return Wire(_as_shape(graph, name, x, spatial, reached.shape), exponent, reached.low, reached.high, reached.shape)


def _sum(graph: Graph, node: Node, inputs: list[Wire], reached: Range) -> Wire:
    """Add `GlobalAveragePool` over all positions of an image if their count is a power of two, else `ReduceSum`."""
    x, rank = inputs[0], len(inputs[0].shape)
    axes = sorted(axis % rank for axis in node.attributes["axes"])
    count, exponent = math.prod(x.shape[axis] for axis in axes), x.exponent
    if rank > 1 and axes == list(range(1, rank)) and _is_power(count):
        name, exponent = graph.node("GlobalAveragePool", [x.name]), exponent - _log2(count)
        name = name if node.attributes["keepdims"] else graph.reshape(name, reached.shape)
    elif axes:
        kept, last = int(node.attributes["keepdims"]), graph.constant(behind_batch(axes), "int64")
        name = graph.node("ReduceSum", [x.name, last], keepdims=kept)
    else:
        name = x.name
    return Wire(name, exponent, reached.low, reached.high, reached.shape)


def _is_power(count: int) -> bool:
    return count > 0 and count & (count - 1) == 0


def _log2(count: int) -> int:
    return count.bit_length() - 1


def _as_image(graph: Graph, x: Wire, spatial: int) -> str:
    """Return the value with exactly one axis between the batch and the pooled ones."""
    outer = x.shape[:-spatial]
    return x.name if len(outer) == 1 else graph.reshape(x.name, [math.prod(outer), *x.shape[-spatial:]])


def _as_shape(graph: Graph, name: str, x: Wire, spatial: int, shape: tuple[int, ...]) -> str:
    return name if len(x.shape) - spatial == 1 else graph.reshape(name, shape)


def _reshape(graph: Graph, node: Node, inputs: list[Wire], reached: Range) -> Wire:
    x = inputs[0]
    flat = len(reached.shape) == 1
    name = graph.node("Flatten", [x.name], axis=1) if flat else graph.reshape(x.name, reached.shape)
    return replace(x, name=name, shape=reached.shape)


def _permute(graph: Graph, node: Node, inputs: list[Wire], reached: Range) -> Wire:
    axes = [axis % len(reached.shape) + 1 for axis in node.attributes["axes"]]
    return replace(inputs[0], name=graph.node("Transpose", [inputs[0].name], perm=[0, *axes]), shape=reached.shape)


def _add(graph: Graph, node: Node, inputs: list[Wire], reached: Range) -> Wire:
    exponent = min(x.exponent for x in inputs)
    names = []
    for x in inputs:
        name, missing = at(graph, x, exponent).name, len(reached.shape) - len(x.shape)
        names.append(graph.reshape(name, [1] * missing + list(x.shape)) if missing else name)
    return Wire(graph.node("Add", names), exponent, reached.low, reached.high, reached.shape)


def _concat(graph: Graph, node: Node, inputs: list[Wire], reached: Range) -> Wire:
    exponent, axis = min(x.exponent for x in inputs), behind_batch([node.attributes["axis"]])[0]
    name = graph.node("Concat", [at(graph, x, exponent).name for x in inputs], axis=axis)
    return Wire(name, exponent, reached.low, reached.high, reached.shape)


def _only_scales(node: Node) -> bool:
    """Return whether every number keeps its significant bits."""
    multiplier = node.tensors.get("multiplier", np.zeros(1, np.int64))
    return node.op == "multiply" and bool(((multiplier > 0) & (multiplier & (multiplier - 1) == 0)).all())


def check_known(node: Node) -> None:
    """Refuse an operation other than a layer that has no form in QONNX.

    Raises:
        ProbqError: naming the node.
    """
    if node.op not in OPERATIONS:
        raise ProbqError(
            f"node {node.name} ({node.op}) cannot be written as QONNX: QONNX has no {node.op}, only "
            f"{', '.join(OPERATIONS)}; export to ONNX or C"
        )


def operation(graph: Graph, node: Node, inputs: list[Wire], reached: Range) -> Wire:
    """Add any operation but a layer.

    Raises:
        ProbqError: float32 does not hold its integers.
    """
    if not node.attributes.get("index") and not _only_scales(node):
        check_exact(reached.low, reached.high, "its integers")
    return OPERATIONS[node.op](graph, node, inputs, reached)


OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "input": _input, "embedding": _embedding, "requantize": _requantize, "multiply": _multiply, "clip": _clip,
        "max_pool": _max_pool, "sum_pool": _sum_pool, "sum": _sum, "reshape": _reshape, "permute": _permute,
        "add": _add, "concat": _concat,
    }
)  # fmt: skip
