"""A first convolution with a maximum over windows behind it becomes one convolution of a greater stride.

ONNX Runtime copies the pixels under a kernel row by row, so an image of one or three channels costs more to gather than
to multiply. `y[p i + a] = sum_k w[k] x[s (p i + a) + k]` is, for each place a in the pooling window of size p, a
convolution of stride `s p` with the kernel moved by `s a`: all places together gather each pixel once, and the pooled
value is their maximum. No product is computed twice; zeros around the moved kernels are the price. An image of one
channel is taken apart into `s p x s p` blocks of pixels besides, which become its channels: one row of blocks then
holds `s p` rows of pixels.
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from probq.export.onnx.convolution import kernel
from probq.export.onnx.graph import Edge, Graph
from probq.export.onnx.layers import FastForm, octets
from probq.export.onnx.quantized_operators import channels_first, channels_last, coded, product, signed_weight
from probq.integer import Node

CHANNELS = 4  # more than these are gathered fast enough
PRICE = 2.5  # products with zeros and without, as a ratio to those without


@dataclass(frozen=True)
class Phases:
    """These numbers say how a convolution and its pooling become one, for height and for width each.

    Attributes:
        stride: the stride of the convolution.
        window: the window of the pooling.
        kernel: that holds the convolution's kernel at every place of the window, in pixels.
        pads: pixels around the image, low and high; negative where its end is cut off.
        outputs: pooled positions.
        apart: whether the image is taken apart into blocks.
    """

    stride: tuple[int, ...]
    window: tuple[int, ...]
    kernel: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    outputs: tuple[int, ...]
    apart: bool

    @property
    def step(self) -> list[int]:
        """Return how many pixels lie between one pooled position and the next."""
        return [s * p for s, p in zip(self.stride, self.window, strict=True)]


def phases(node: Node, pool: Node | None, x: Edge, outputs: tuple[int, ...]) -> Phases | None:
    """Return how a convolution and the only reader of its requantization become one.

    The result is None where that cannot be or does not pay.

    Args:
        node: the layer.
        pool: what reads its requantization.
        x: its input.
        outputs: shape of the pooling's output.
    """
    if pool is None or pool.op != "max_pool" or node.op != "conv" or len(x.shape) != 3 or x.shape[0] > CHANNELS:
        return None
    spec, window = node.attributes, pool.attributes
    side_by_side = window["kernel"] == window["stride"] and window["dilation"] == [1, 1] and not window["ceil_mode"]
    plain = not spec["transposed"] and spec["groups"] == 1 and spec["dilation"] == [1, 1]
    if not (side_by_side and plain) or any(itertools.chain(*window["padding"])) or math.prod(window["kernel"]) == 1:
        return None
    apart, taps, parts = x.shape[0] == 1, node.tensors["weight"].shape[2:], []
    for k, s, p, (low, high), n, m in zip(
        taps, spec["stride"], window["kernel"], spec["padding"], x.shape[1:], outputs[1:], strict=True
    ):
        wide = k + s * (p - 1)
        if apart:
            wide = -(-wide // (s * p)) * s * p
            high = (m - 1) * s * p + wide - n - low
        parts.append((s, p, wide, (low, high), m))
    strides, steps, wide, pads, counts = zip(*parts, strict=True)
    found = Phases(strides, steps, wide, pads, counts, apart)
    return found if math.prod(found.kernel) <= PRICE * math.prod(taps) else None


def pooled(graph: Graph, node: Node, requantize: Node, form: FastForm, x: Edge, found: Phases) -> Edge:
    """Add a convolution, its requantization and the pooling; the edge is that of the pooling."""
    x, count, channels = octets(graph, x), math.prod(found.window), len(form.bias)
    weight = signed_weight(graph, kernel(node), x)
    weight = weight._replace(name=_moved(graph, weight.name, weight.zero, node.tensors["weight"].shape, found))
    many = replace(form, scale=np.tile(form.scale, count), bias=np.tile(form.bias, count))
    if found.apart:
        name = product(graph, _in_blocks(graph, x, found), x, weight, many)
    else:
        pads = [low for low, _ in found.pads] + [high for _, high in found.pads]
        name = product(graph, x.name, x, weight, many, strides=found.step, pads=pads)
    height, width = found.outputs
    name = graph.reshape(channels_last(graph, name, 3), [height * width * count, 1, channels])
    window = {"kernel_shape": [count, 1], "strides": [count, 1]}
    name = graph.node("MaxPool", [channels_first(graph, name)], **window)
    name = graph.reshape(channels_last(graph, name, 3), [height, width, channels])
    return coded(graph, channels_first(graph, name), requantize, form, (channels, height, width))


def _in_blocks(graph: Graph, x: Edge, found: Phases) -> str:
    """Add an image of one channel as `[batch, block, height, width]`, counted in blocks."""
    name = x.name
    if any(end for pair in found.pads for end in pair):
        ends = [0, 0, *(low for low, _ in found.pads), 0, 0, *(high for _, high in found.pads)]
        name = graph.node("Pad", [name, graph.constant(ends, "int64"), graph.constant(x.zero, "uint8")])
    sizes = [n + sum(ends) for n, ends in zip(x.shape[1:], found.pads, strict=True)]
    (high, wide), (a, b) = (n // step for n, step in zip(sizes, found.step, strict=True)), found.step
    name = graph.node("Transpose", [graph.reshape(name, [high, a, wide, b])], perm=[0, 1, 3, 2, 4])
    return channels_first(graph, graph.reshape(name, [high, wide, a * b]))


def _moved(graph: Graph, weight: str, zero: str, shape: tuple[int, ...], found: Phases) -> str:
    """Add the kernels of all places in the window, `[places * outputs, channels, *kernel]`, from constants."""
    outputs, taps = shape[0], shape[2:]
    places = []
    for place in itertools.product(*(range(p) for p in found.window)):
        lows = [s * k for s, k in zip(found.stride, place, strict=True)]
        highs = [full - k - low for full, k, low in zip(found.kernel, taps, lows, strict=True)]
        places.append(graph.node("Pad", [weight, graph.constant([0, 0, *lows, 0, 0, *highs], "int64"), zero]))
    name, count = graph.node("Concat", places, axis=0), len(places) * outputs
    if not found.apart:
        return name
    (a, b), (high, wide) = found.step, (k // step for k, step in zip(found.kernel, found.step, strict=True))
    name = graph.node("Reshape", [name, graph.constant([count, high, a, wide, b], "int64")])
    name = graph.node("Transpose", [name], perm=[0, 2, 4, 1, 3])
    return graph.node("Reshape", [name, graph.constant([count, a * b, high, wide], "int64")])
