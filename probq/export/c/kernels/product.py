"""A layer as the C exporter's kernels see it: windows, weights, and what happens to a sum."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from probq.export.c.code.elementwise import Operand, Rounding, cast, copied, operand
from probq.export.c.code.program import CSource
from probq.export.c.code.values import I16, Buffer, ElementRange, Type, View, dense
from probq.integer import Node


@dataclass(frozen=True)
class Tail:
    """What happens to an accumulator: it is stored, or requantized first."""

    type: Type
    how: Rounding | None = None
    operands: tuple[Operand, ...] = ()

    def lines(self, value: str, target: str, output: str) -> list[str]:
        """C lines that store the accumulator of an output channel."""
        if self.how is None:
            return [f"{target} = {cast(self.type, value)};"]
        return self.how.lines(value, target, [each.at(output) for each in self.operands])


@dataclass(frozen=True)
class Product:
    """A layer as products of windows with weights, its value `[positions, outputs]` with the outputs side by side.

    Attributes:
        node: the layer.
        x: its input: `[positions, features]`, or an image `[*sizes, channels]`, dense.
        sizes, outs: of the image and the output, empty for a linear layer.
        range: of the input, zero padding included.
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
        """`[outputs, *kernel, channels of a group]`."""
        return self.arrange(self.node.tensors["weight"])

    @property
    def kernel(self) -> tuple[int, ...]:
        """Elements of the kernel in each direction."""
        return self.weight.shape[1:-1]

    @property
    def groups(self) -> int:
        """Groups of channels."""
        return int(self.node.attributes.get("groups", 1))

    @property
    def outputs(self) -> int:
        """Output channels of all groups."""
        return len(self.node.tensors["bias"])

    @property
    def positions(self) -> int:
        """Output positions."""
        return self.y.size // self.outputs

    def steps(self) -> tuple[int, ...]:
        """Elements of the image from one index to the next, in each direction."""
        return dense((*self.sizes, self.x.shape[-1]))[:-1]

    def runs(self) -> tuple[int, list[int]]:
        """A window as runs of neighbours in the image: their length, and where each begins after its origin."""
        channels, steps, taps = self.weight.shape[-1], self.steps(), list(self.kernel)
        length = channels
        if taps and self.dilation[-1] == 1 and self.groups == 1:
            length, taps[-1] = channels * taps[-1], 1
        starts = np.zeros(1, np.int64)
        for count, step, dilation in zip(taps, steps, self.dilation, strict=True):
            starts = (starts[:, None] + np.arange(count) * step * dilation).reshape(-1)
        return length, starts.tolist()

    def origin(self) -> list[int]:
        """Elements of the image by which a window's origin moves with each output index."""
        return [step * stride for step, stride in zip(self.steps(), self.stride, strict=True)]


def widened(p: CSource, product: Product) -> Buffer:
    """The image as 16-bit integers, with one element more."""
    size = product.x.size
    wide = View(p.buffer(I16, size + 1), product.x.shape, product.x.strides)
    return copied(p, f"{product.node.name}: 16 bits", product.x, wide).buffer


def bias(p: CSource, product: Product) -> Operand:
    """The bias for each output."""
    return operand(p, product.node.tensors["bias"], 1)
