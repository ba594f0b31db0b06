"""The C exporter lays out linear layers and convolutions, and chooses the kernel that computes each."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from probq.export.c.code.elementwise import Operand, copied, ordered, rounding
from probq.export.c.code.program import CSource
from probq.export.c.code.text import loops
from probq.export.c.code.values import ElementRange, View, channels_last
from probq.export.c.kernels import bit_planes, byte_kernels, register_blocks
from probq.export.c.kernels.product import Product, Tail
from probq.export.c.kernels.vector_rows import has_vectors
from probq.export.c.kernels.weight_rows import one_codebook
from probq.integer import Node

TILE = 4096  # products of outputs and kernel elements up to which a convolution keeps all its weights unpacked
CHANNELS = 32  # from which on a convolution is faster on bit planes than in blocks


def layer(p: CSource, node: Node, follower: Node | None) -> View:
    """Compute the value of a layer, or of the requantization that follows it."""
    product = _linear(p, node, follower) if node.op == "linear" else _conv(p, node, follower)
    blocks = register_blocks.fits(product)
    if bit_planes.fits(p, product) and not (blocks and _has_few_channels(product)):
        bit_planes.emit(p, product)
    elif has_vectors(node):
        byte_kernels.dots(p, product)  # a row at a time, as they are looked up
    elif product.groups > 1 and product.weight.shape[-1] == 1 and product.groups == product.outputs:
        byte_kernels.depthwise(p, product)
    elif blocks:
        register_blocks.emit(p, product)
    elif _is_small(product):
        byte_kernels.pairs(p, product)
    else:
        byte_kernels.dots(p, product)
    return product.y if node.op == "linear" else _channels_first(product.y)


def _has_few_channels(product: Product) -> bool:
    """Return whether gathering the bits of a window takes longer than what they save."""
    return bool(product.sizes) and product.weight.shape[-1] < CHANNELS


def _channels_first(y: View) -> View:
    return View(y.buffer, (y.shape[-1], *y.shape[:-1]), (y.strides[-1], *y.strides[:-1]))


def _is_small(product: Product) -> bool:
    fits = product.x.buffer.type.bits <= 16 and np.abs(product.weight).max() < 2**15
    small = product.outputs * math.prod(product.weight.shape[1:]) <= TILE
    plain = product.groups == 1 and product.positions > 1 and one_codebook(product.node) is not None
    return bool(fits and small and plain and product.sizes)


def follows(node: Node, follower: Node) -> bool:
    """Return whether a requantization treats all positions of a layer's channel alike."""
    axis = 0 if node.op == "linear" else node.tensors["weight"].ndim - 2  # from the last
    return all(
        n == 1 for tensor in follower.tensors.values() for k, n in enumerate(reversed(tensor.shape)) if k != axis
    )


def _tail(p: CSource, node: Node, follower: Node | None) -> Tail:
    if follower is None:
        return Tail(p.ranges[node.name].type)
    how, axis = rounding(p, follower, p.ranges[node.name]), -1 if node.op == "linear" else 0
    return Tail(how.type, how, tuple(Operand(each.text, (each.strides[axis],)) for each in how.operands))


def _linear(p: CSource, node: Node, follower: Node | None) -> Product:
    x, tail = ordered(p, node.name, p.views[node.inputs[0]]), _tail(p, node, follower)
    y = p.view(tail.type, p.ranges[node.name].low.shape)
    return Product(node, x, (), (), p.ranges[node.inputs[0]], (), (), lambda w: w, y, tail)


def _conv(p: CSource, node: Node, follower: Node | None) -> Product:
    spec, weight, tail = node.attributes, node.tensors["weight"], _tail(p, node, follower)
    x, out = p.views[node.inputs[0]], p.ranges[node.name].low.shape
    stride, spread, pads = spec["stride"], [1] * len(out[1:]), spec["padding"]
    kernel = weight.shape[2:]
    if spec["transposed"]:
        reach = [d * (k - 1) for d, k in zip(spec["dilation"], kernel, strict=True)]
        extra = spec.get("output_padding") or [0] * len(reach)
        pads = [[r - low, r - high + e] for r, (low, high), e in zip(reach, pads, extra, strict=True)]
        stride, spread = spread, stride
    arrange = _upright(spec["groups"]) if spec["transposed"] else lambda w: np.moveaxis(w, 1, -1)
    image, padded = _image(p, node.name, x, pads, spread)
    y = p.view(tail.type, (*out[1:], out[0]))
    found = p.ranges[node.inputs[0]]
    if padded:
        step = math.gcd(found.step, found.limits[0])
        found = ElementRange(np.minimum(found.low, 0), np.maximum(found.high, 0), found.most, step)
    return Product(
        node, image, image.shape[:-1], out[1:], found, tuple(stride), tuple(spec["dilation"]), arrange, y, tail
    )


def _upright(groups: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that makes the weight of a transposed convolution that of an ordinary one."""

    def arrange(weight: np.ndarray) -> np.ndarray:
        weight = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
        weight = weight.reshape(-1, *weight.shape[2:])
        return np.moveaxis(np.flip(weight, tuple(range(2, weight.ndim))), 1, -1)

    return arrange


def _image(p: CSource, title: str, x: View, pads: Sequence[Sequence[int]], spread: Sequence[int]) -> tuple[View, bool]:
    """Return the input with its channels last, padded and spread with zeros, and whether that was needed."""
    axes = channels_last(len(x.shape))
    moved = View(x.buffer, tuple(x.shape[k] for k in axes), tuple(x.strides[k] for k in axes), x.offset)
    padded = any(end for pair in pads for end in pair) or any(
        s > 1 and n > 1 for s, n in zip(spread, moved.shape, strict=False)
    )
    if not padded:
        return ordered(p, title, moved), False
    full = [(n - 1) * s + 1 + low + high for n, s, (low, high) in zip(moved.shape, spread, pads, strict=False)]
    y = p.view(x.buffer.type, (*full, x.shape[0]))
    p.step(f"{title}: zeros", {}, {"y": y.buffer}, loops([("i", y.size)], ["y[i] = 0;"]))
    shape, offset, start = list(moved.shape), 0, x.offset
    for k, (s, (low, _)) in enumerate(zip(spread, pads, strict=True)):
        first = max(0, -(low // s))  # of the inputs that land at or after 0
        last = min(moved.shape[k] - 1, (full[k] - 1 - low) // s)
        shape[k] = last - first + 1
        offset += (low + s * first) * y.strides[k]
        start += first * moved.strides[k]
    if min(shape) > 0:
        steps = (*(s * stride for s, stride in zip(spread, y.strides[:-1], strict=True)), y.strides[-1])
        source = View(x.buffer, tuple(shape), moved.strides, start)
        copied(p, f"{title}: image", source, View(y.buffer, tuple(shape), steps, offset))
    return y, True
