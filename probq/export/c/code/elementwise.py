"""The C exporter treats elements one by one in these operations, or only moves them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from probq.export.c.code.program import CSource
from probq.export.c.code.text import index, literal, loops, nest
from probq.export.c.code.values import MOST, ElementRange, Type, View
from probq.integer import Node

Body = Callable[[str, list[str], list[str]], list[str]]


@dataclass(frozen=True)
class Operand:
    """A constant tensor in C is a literal, or an array with a stride for each axis of the value it broadcasts to."""

    text: str
    strides: tuple[int, ...] = ()

    def at(self, place: str) -> str:
        """Return the element at a place."""
        return f"{self.text}[{place}]" if any(self.strides) else self.text


def operand(p: CSource, tensor: np.ndarray, axes: int) -> Operand:
    """Return the tensor as it broadcasts to a value of so many axes."""
    if tensor.size and (tensor == tensor.flat[0]).all():
        return Operand(literal(int(tensor.flat[0])), (0,) * axes)
    strides = [0 if n == 1 else s // tensor.itemsize for n, s in zip(tensor.shape, _canonical(tensor), strict=True)]
    return Operand(p.constant(tensor), (0,) * (axes - tensor.ndim) + tuple(strides))


def _canonical(tensor: np.ndarray) -> tuple[int, ...]:
    return np.ascontiguousarray(tensor).reshape(tensor.shape).strides


def order(view: View) -> tuple[int, ...]:
    """Return the axes of a view from the slowest to the fastest."""
    return tuple(sorted(range(len(view.shape)), key=lambda k: (-view.strides[k] * (view.shape[k] != 1), k)))


def broadcast(x: View, shape: Sequence[int]) -> View:
    """Return the view repeated to a shape, by strides of zero."""
    strides = [0 if n == 1 else s for n, s in zip(x.shape, x.strides, strict=True)]
    return View(x.buffer, tuple(shape), (0,) * (len(shape) - len(strides)) + tuple(strides), x.offset)


def elementwise(p: CSource, title: str, y: View, xs: Sequence[View], operands: Sequence[Operand], body: Body) -> None:
    """Add a step with one loop nest.

    `body(target, sources, operands)` gives the lines for C expressions of elements.
    """
    strides = [y.strides, *(x.strides for x in xs), *(o.strides for o in operands)]
    axes = nest(y.shape, strides)
    names = [f"i{k}" for k in range(len(axes))]
    at = [index(names, [steps[k] for _, steps in axes]) for k in range(len(strides))]
    offsets = [y.offset, *(x.offset for x in xs)]
    places = [index(names, [steps[k] for _, steps in axes], offset) for k, offset in enumerate(offsets)]
    sources = [f"x{k}[{place}]" for k, place in enumerate(places[1:])]
    constants = [o.at(place) for o, place in zip(operands, at[1 + len(xs) :], strict=True)]
    lines = body(f"y[{places[0]}]", sources, constants)
    inputs = {f"x{k}": x.buffer for k, x in enumerate(xs)}
    p.step(title, inputs, {"y": y.buffer}, loops(zip(names, [n for n, _ in axes], strict=True), lines))


def cast(kind: Type, expression: str, source: Type | None = None) -> str:
    """Return the expression as a value of the type, which is known to hold it."""
    return expression if source == kind else f"({kind.name})({expression})"


def copied(p: CSource, title: str, x: View, y: View) -> View:
    """Add a step that fills `y` with the elements of `x`, and return `y`."""
    same = x.buffer.type if x.buffer.type == y.buffer.type else None
    elementwise(p, title, y, [x], [], lambda t, s, _: [f"{t} = {cast(y.buffer.type, s[0], same)};"])
    return y


def ordered(p: CSource, title: str, x: View, axes: Sequence[int] | None = None) -> View:
    """Return the value with its axes dense in the given order, by default their own, as a copy only where needed."""
    if x.is_dense(axes) and not x.offset:
        return x
    return copied(p, f"{title}: order", x, p.view(x.buffer.type, x.shape, axes))


@dataclass(frozen=True)
class Rounding:
    """A rounding is a requantization of values in a given range, written in C.

    Attributes:
        operands: multiplier, add, shift.
        wide: whether the products need 64 bits.
    """

    node: Node
    operands: tuple[Operand, Operand, Operand]
    wide: bool
    low: int
    high: int
    type: Type

    def lines(self, value: str, target: str, constants: Sequence[str]) -> list[str]:
        """Return C lines that set the target from a value and the elements of the operands."""
        wide, (multiplier, add, shift) = ("int64_t" if self.wide else "int32_t"), constants
        product = f"({wide})({value})" + (f" * {multiplier}" if multiplier != "1" else "")
        total = product if add == "0" else f"{product} + {add}"
        code = total if shift == "0" else f"({total}) >> {shift}"
        lines, lo, hi = [f"{wide} q = {code};"], self.node.attributes["lo"], self.node.attributes["hi"]
        if self.low < lo:
            lines.append(f"q = q < {literal(lo)} ? {literal(lo)} : q;")
        if self.high > hi:
            lines.append(f"q = q > {literal(hi)} ? {literal(hi)} : q;")
        start, step = self.node.attributes.get("start", 0), self.node.attributes.get("step", 1)
        level = "q" if (start, step) == (0, 1) else f"{literal(start)} + {literal(step)} * q"
        return [*lines, f"{target} = {cast(self.type, level)};"]


def rounding(p: CSource, node: Node, x: ElementRange) -> Rounding:
    """Return how to requantize values of range `x`."""
    m, add, shift = (node.tensors[name] for name in ("multiplier", "add", "shift"))
    ends = [(end * m + add) >> shift for end in (x.low, x.high)]
    low, high = int(np.minimum(*ends).min()), int(np.maximum(*ends).max())
    largest = np.maximum(np.abs(x.low), np.abs(x.high))
    size = np.maximum(largest, largest * np.abs(m) + np.abs(add))
    wide = max(int(size.max()), int(np.abs(m).max()), _reached(node, low, high)) > MOST
    shift = shift if wide else np.minimum(shift, 31)
    operands = [operand(p, tensor, x.low.ndim) for tensor in (m, add, shift)]
    return Rounding(node, (operands[0], operands[1], operands[2]), wide, low, high, p.ranges[node.name].type)


def _reached(node: Node, low: int, high: int) -> int:
    """Return the largest magnitude in clipping `low .. high` and taking levels."""
    lo, hi, start, step = (node.attributes.get(name, default) for name, default in
                           (("lo", 0), ("hi", 0), ("start", 0), ("step", 1)))  # fmt: skip
    used = [lo] * (low < lo) + [hi] * (high > hi)
    codes = [min(max(end, lo), hi) for end in (low, high)]
    return max(abs(start), *(abs(end) for end in used), *(abs(step * code) for code in codes))
