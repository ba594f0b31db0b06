"""hls4ml takes an integer model when factors of output channels become wider integer weights."""

import numpy as np

from probq.export.common.requantization import per_channel
from probq.integer import IntegerModel, Node
from probq.integer.ranges import LAYERS


def rewritten(model: IntegerModel) -> IntegerModel:
    """Return the same function with every `multiply` folded into the layer before it, if nothing else reads that layer.

    `(w x + b) m = (w m) x + b m`, with `m` per output channel: exact, in integers of more bits and one scale.
    """
    readers = [name for node in model.nodes for name in node.inputs]
    found, nodes = model.ranges, {node.name: node for node in model.nodes}
    for node in model.nodes:
        layer = nodes[node.inputs[0]] if node.op == "multiply" else None
        if layer is None or layer.op not in LAYERS or layer.attributes.get("transposed"):
            continue
        factor = per_channel(node.tensors["multiplier"], layer, len(found[layer.name].shape))
        if factor is not None and readers.count(layer.name) == 1 and layer.name != model.output:
            nodes[node.name] = _scaled(layer, factor, node.name)
            del nodes[layer.name]
    return IntegerModel(list(nodes.values()), model.output, model.output_scale, model.metadata)


def _scaled(layer: Node, factor: np.ndarray, name: str) -> Node:
    """Return the layer with its channels multiplied, `factor` int64 `[outputs]`."""
    weight, bias = layer.tensors["weight"], layer.tensors["bias"]
    tensors = {"weight": weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), "bias": bias * factor}
    return Node(name, layer.op, layer.inputs, layer.attributes, tensors)
