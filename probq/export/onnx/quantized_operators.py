"""A layer with its requantization is one `QLinearConv`, laid out so that ONNX Runtime has nothing to rearrange.

ONNX Runtime computes `QLinearConv` and `MaxPool` of uint8 with the channels last, and removes a transposition that
meets its own. So a linear layer's batch becomes a spatial axis, and what is flattened is flattened with its channels
last.

Products of signed weights are twice as fast as those of unsigned ones, but saturate on x86 without VNNI where both
factors have 8 bits. Two products of constants tell which processor it is, and an `If` takes the weights that are exact
there; ONNX Runtime computes both when it loads the file, so that an inference meets neither.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from probq.export.onnx.convolution import Kernel, kernel
from probq.export.onnx.graph import Edge, Graph, tensor_type
from probq.export.onnx.layers import FastForm, levels, octets, stored, weights
from probq.export.onnx.packed_parameters import parameter
from probq.integer import Node
from probq.integer.packing import smallest
from probq.utils.optional_import import require

PROBED = 16  # products of the greatest bytes in each sum of the probe


class Weight(NamedTuple):
    """A weight of 8 bits has names of a tensor and of its zero point.

    Attributes:
        name: of the tensor.
        zero: of its zero point.
        unsigned: zero point as uint8 where it is signed although its products may saturate; None: they do not.
    """

    name: str
    zero: str
    unsigned: int | None = None


def signed_weight(graph: Graph, shaped: Kernel, x: Edge) -> Weight:
    """Add the weight of a `QLinearConv`, signed wherever int8 holds it."""
    how = stored(shaped.weight, x.high + x.zero)
    if how is None or how[0] == "int8" or shaped.weight.min() < -128 or shaped.weight.max() > 127:
        return Weight(*weights(graph, shaped, x))
    name = parameter(graph, shaped.weight, "int8", shaped.packing)
    return Weight(name, graph.constant(0, "int8"), how[1])


def fused(graph: Graph, node: Node, requantize: Node, form: FastForm, x: Edge, shape: tuple[int, ...]) -> Edge:
    """Add a convolution and its requantization; the edge is that of the requantization."""
    x, shaped = octets(graph, x), kernel(node)
    source = shaped.prepared(graph, x)
    name = product(graph, source, x, signed_weight(graph, shaped, x), form, **shaped.attributes)
    return coded(graph, name, requantize, form, shape)


def fused_linear(
    graph: Graph, node: Node, requantize: Node, form: FastForm, x: Edge, shape: tuple[int, ...], image: Edge | None
) -> Edge:
    """Add a linear layer and its requantization, a 1x1 convolution over an image of all the batch's positions.

    Args:
        graph: in the making.
        node: the linear layer.
        requantize: the only reader of its output.
        form: the form of the layer.
        x: the layer's input, `[..., features]`.
        shape: the shape of the layer's output.
        image: where x is this edge `[channels, *sizes]` flattened, which nobody else need do then.
    """
    x, shaped = octets(graph, x if image is None else image), kernel(node)
    source, width = x.name, node.tensors["weight"].shape[1]
    if image is not None:
        source = channels_last(graph, source, len(x.shape))
        shaped = shaped.reshaped(lambda weight: _channels_last(weight, x.shape))
    source = graph.node("Reshape", [source, graph.constant([1, -1, 1, width], "int64")])
    source = channels_first(graph, graph.clipped(source, x))
    shaped = shaped.reshaped(lambda weight: weight.reshape(*weight.shape, 1, 1))
    name = product(graph, source, x, signed_weight(graph, shaped, x), form)
    name = graph.node("Reshape", [channels_last(graph, name, 3), graph.constant([-1, *shape], "int64")])
    return coded(graph, name, requantize, form, shape)


def _channels_last(weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return `[outputs, channels * sizes]` as `[outputs, sizes * channels]`."""
    return np.moveaxis(weight.reshape(-1, *shape), 1, -1).reshape(len(weight), -1)


def product(graph: Graph, source: str, x: Edge, weight: Weight, form: FastForm, **attributes: object) -> str:
    """Add a `QLinearConv` over a uint8 tensor with the zero point of x."""
    one, zero = graph.constant(1, "float32"), graph.constant(form.offset, "uint8")
    scale = form.scale[0] if form.scale.size and (form.scale == form.scale[0]).all() else form.scale
    scales, first = graph.constant(scale, "float32"), graph.constant(x.zero, "uint8")
    bias = parameter(graph, form.bias, "int32", smallest(form.bias))

    def convolution(name: str, middle: str) -> str:
        inputs = [source, one, first, name, scales, middle, one, zero, bias]
        return graph.node("QLinearConv", inputs, **attributes)

    def unsigned() -> str:
        wide = graph.node("Add", [graph.cast(weight.name, "int32"), graph.constant(weight.unsigned, "int32")])
        return convolution(graph.cast(wide, "uint8"), graph.constant(weight.unsigned, "uint8"))

    if weight.unsigned is None:
        return convolution(weight.name, weight.zero)
    return _either(graph, _probe(graph), lambda: convolution(weight.name, weight.zero), unsigned)


def _either(graph: Graph, condition: str, first: Callable[[], str], second: Callable[[], str]) -> str:
    """Add an `If` of two ways to one uint8 tensor, each of which adds its nodes."""
    helper, around, ways = require("onnx.helper", "onnx"), graph.nodes, []
    for way in (first, second):
        graph.nodes = []
        info = helper.make_tensor_value_info(way(), tensor_type("uint8"), None)
        ways.append(helper.make_graph(graph.nodes, info.name, [], [info]))
    graph.nodes = around
    return graph.node("If", [condition], then_branch=ways[0], else_branch=ways[1])


def _probe(graph: Graph) -> str:
    """Add, once, whether sums of products of the greatest uint8 and int8 are what they should be.

    One is of several rows, as a `QLinearConv`, the other of a single one, for which there are kernels of their own.
    """
    if not graph.probe:
        total, shift = 255 * 127 * PROBED, 12
        x, w = np.full((1, PROBED, 2, 2), 255), np.full((2 * PROBED, PROBED, 1, 1), 127)
        one, zero, signed = graph.constant(1, "float32"), graph.constant(0, "uint8"), graph.constant(0, "int8")
        inputs = [graph.constant(x, "uint8"), one, zero, graph.constant(w, "int8")]
        inputs += [graph.constant(2.0**-shift, "float32"), signed, one, zero]
        many = graph.cast(graph.node("QLinearConv", inputs), "int32")
        rows = [graph.constant(x[:, :, 0, 0], "uint8"), graph.constant(w[:, :, 0, 0].T, "int8"), zero, signed]
        found = [(many, round(total / 2**shift)), (graph.node("MatMulInteger", rows), total)]
        right = [
            graph.node("Equal", [graph.node("ReduceMin", [name], keepdims=0), graph.constant(number, "int32")])
            for name, number in found
        ]
        graph.probe = graph.node("And", right)
    return graph.probe


def coded(graph: Graph, name: str, requantize: Node, form: FastForm, shape: tuple[int, ...]) -> Edge:
    """Return the edge of a requantization, from the tensor of its codes that are yet to be clipped."""
    lo, hi = requantize.attributes["lo"], requantize.attributes["hi"]
    codes = Edge(name, "uint8", form.zero, lo, hi, shape, form.limits)
    if (requantize.attributes.get("start", 0), requantize.attributes.get("step", 1)) == (0, 1):
        return codes
    return levels(graph, graph.settled(codes), requantize)


def channels_last(graph: Graph, name: str, rank: int) -> str:
    """Add `[batch, channels, *sizes]` as `[batch, *sizes, channels]`; rank without the batch."""
    return graph.node("Transpose", [name], perm=[0, *range(2, rank + 1), 1])


def channels_first(graph: Graph, name: str) -> str:
    """Add `[batch, height, width, channels]` as `[batch, channels, height, width]`."""
    return graph.node("Transpose", [name], perm=[0, 3, 1, 2])
