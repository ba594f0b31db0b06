"""A layer with its requantization is one `QLinearConv`, laid out so that ONNX Runtime has nothing to rearrange.

ONNX Runtime computes `QLinearConv` and `MaxPool` of uint8 with the channels last, and removes a transposition that
meets its own. So a linear layer's batch becomes a spatial axis, and what is flattened is flattened with its channels
last.
"""

import numpy as np

from probq.export.onnx.convolution import kernel
from probq.export.onnx.graph import Edge, Graph
from probq.export.onnx.layers import FastForm, levels, octets, weights
from probq.export.onnx.packed_parameters import parameter
from probq.integer import Node
from probq.integer.packing import smallest


def fused(graph: Graph, node: Node, requantize: Node, form: FastForm, x: Edge, shape: tuple[int, ...]) -> Edge:
    """Add a convolution and its requantization; the edge is that of the requantization."""
    x, shaped = octets(graph, x), kernel(node)
    source = shaped.prepared(graph, x)
    name = product(graph, source, x, weights(graph, shaped, x), form, **shaped.attributes)
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
    name = product(graph, source, x, weights(graph, shaped, x), form)
    name = graph.node("Reshape", [channels_last(graph, name, 3), graph.constant([-1, *shape], "int64")])
    return coded(graph, name, requantize, form, shape)


def _channels_last(weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return `[outputs, channels * sizes]` as `[outputs, sizes * channels]`."""
    return np.moveaxis(weight.reshape(-1, *shape), 1, -1).reshape(len(weight), -1)


def product(graph: Graph, source: str, x: Edge, weight: tuple[str, str], form: FastForm, **attributes: object) -> str:
    """Add a `QLinearConv` over a uint8 tensor with the zero point of x; weight and its zero point by name."""
    one, zero = graph.constant(1, "float32"), graph.constant(form.offset, "uint8")
    scale = form.scale[0] if form.scale.size and (form.scale == form.scale[0]).all() else form.scale
    bias = parameter(graph, form.bias, "int32", smallest(form.bias))
    inputs = [source, one, graph.constant(x.zero, "uint8"), weight[0], graph.constant(scale, "float32"), weight[1]]
    return graph.node("QLinearConv", [*inputs, one, zero, bias], **attributes)


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
