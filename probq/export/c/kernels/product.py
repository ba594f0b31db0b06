"""The C exporter's kernels see a layer as windows, weights, and what happens to a sum."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from probq.export.c.code.elementwise import Operand, Rounding, cast, copied, operand
from probq.export.c.code.program import CSource
from probq.export.c.code.text import indented, index
from probq.export.c.code.values import I16, Buffer, ElementRange, Type, View, dense
from probq.integer import Node


@dataclass(frozen=True)
class Tail:
    """A tail says what happens to an accumulator: it is stored, or requantized first."""

    type: Type
    how: Rounding | None = None
    operands: tuple[Operand, ...] = ()

    def lines(self, value: str, target: str, output: str) -> list[str]:
        """Return C lines that store the accumulator of an output channel."""
        if self.how is None:
            return [f"{target} = {cast(self.type, value)};"]
        return self.how.lines(value, target, [each.at(output) for each in self.operands])


@dataclass(frozen=True)
class Product:
    """A product multiplies windows with weights; its value is `[positions, outputs]`, outputs side by side.

    Attributes:
        node: the layer.
        x: its input: `[positions, features]`, or an image `[*sizes, channels]`, dense.
        sizes, outs: of the image and the output, empty for a linear layer.
        range: the range of the input, zero padding included.
        stride, dilation: in each direction.
        arrange: makes `[outputs, *kernel, channels of a group]` of the weight.
        y: where the output goes.
        tail: what happens to an accumulator.
    """

    node: Node
    x: View
    sizes: tuple[int, ...]
    outs: tuple[int, ...]
    range: ElementRange
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    arrange: Callable[[np.ndarray], np.ndarray]
    y: View
    tail: Tail

    @property
    def weight(self) -> np.ndarray:
        """Return the weight as `[outputs, *kernel, channels of a group]`."""
        return self.arrange(self.node.tensors["weight"])

    @property
    def kernel(self) -> tuple[int, ...]:
        """Return the elements of the kernel in each direction."""
        return self.weight.shape[1:-1]

    @property
    def groups(self) -> int:
        """Return the number of groups of channels."""
        return int(self.node.attributes.get("groups", 1))

    @property
    def outputs(self) -> int:
        """Return the number of output channels of all groups."""
        return len(self.node.tensors["bias"])

    @property
    def positions(self) -> int:
        """Return the number of output positions."""
        return self.y.size // self.outputs

    @property
    def is_flat(self) -> bool:
        """Return whether the windows of an image lie side by side in it already."""
        one = math.prod(self.kernel) == 1 and self.groups == 1
        return one and all(s == 1 for s in self.stride) and self.sizes == self.outs

    def steps(self) -> tuple[int, ...]:
        """Return how many elements of the image lie between one index and the next, in each direction."""
        return dense((*self.sizes, self.x.shape[-1]))[:-1]

    def runs(self) -> tuple[int, list[int]]:
        """Return the length of the runs of neighbours in the image that make a window, and each one's place in it."""
        channels, steps, taps = self.weight.shape[-1], self.steps(), list(self.kernel)
        length = channels
        if taps and self.dilation[-1] == 1 and self.groups == 1:
            length, taps[-1] = channels * taps[-1], 1
        starts = np.zeros(1, np.int64)
        for count, step, dilation in zip(taps, steps, self.dilation, strict=True):
            starts = (starts[:, None] + np.arange(count) * step * dilation).reshape(-1)
        return length, starts.tolist()

    def origin(self) -> list[int]:
        """Return how many elements of the image a window's origin moves with each output index."""
        return [step * stride for step, stride in zip(self.steps(), self.stride, strict=True)]


def window_copies(product: Product, pitch: int, fill: int = 0) -> list[str]:
    """Return C lines that copy the windows of `n` positions from `p` on, `pitch` elements apart, into `patch`.

    Args:
        product: the layer.
        pitch: elements from one window to the next.
        fill: zeros that follow a window.
    """
    run, starts = product.runs()
    lines: list[str] = []
    names, left = [], product.positions
    for k, n in enumerate(product.outs):
        left //= n
        names.append(f"o{k}")
        lines.append(f"const int32_t o{k} = (p + t) / {left}" + (f" % {n};" if k else ";"))
    offset = f" + g * {product.weight.shape[-1]}" if product.groups > 1 else ""
    place = index(names, product.origin()) if names else f"(p + t) * {run}"
    lines.append(f"const {product.x.buffer.type.name} *from = x + {place}{offset};")
    lines.append(f"{product.x.buffer.type.name} *to = patch + t * {pitch};")
    octets = run * product.x.buffer.type.bits // 8
    copy = [f"memcpy(to + {k * run}, from + {start}, {octets});" for k, start in enumerate(starts)]
    if fill:
        copy.append(f"memset(to + {len(starts) * run}, 0, {fill * product.x.buffer.type.bits // 8});")
    return ["for (int32_t t = 0; t < n; t++) {", *indented(lines + copy), "}"]


def widened(p: CSource, product: Product) -> Buffer:
    """Return the image as 16-bit integers, with one element more."""
    size = product.x.size
    wide = View(p.buffer(I16, size + 1), product.x.shape, product.x.strides)
    return copied(p, f"{product.node.name}: 16 bits", product.x, wide).buffer


def bias(p: CSource, product: Product) -> Operand:
    """Return the bias for each output."""
    return operand(p, product.node.tensors["bias"], 1)


def in_tiles(lines: list[str], count: int, tile: int) -> list[str]:
    """Return C lines that run others for `n` positions from `p` on until `count` are done, a tile at most at a time."""
    if tile == count:
        return ["const int32_t p = 0;", f"const int32_t n = {count};", *lines]
    n = f"const int32_t n = {count} - p < {tile} ? {count} - p : {tile};"
    return [f"for (int32_t p = 0; p < {count}; p += {tile}) {{", *indented([n, *lines]), "}"]
