"""The C exporter knows of a value its interval, its grid, its C type and how it lies in memory."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from probq.integer import IntegerModel, Node
from probq.integer.interpreter import evaluate
from probq.integer.loops.body import BEGINS, beginning, results, sequences, states
from probq.integer.ranges import Range, reachable
from probq.integer.shapes import shape_of
from probq.integer.switches.body import SWITCH
from probq.utils.errors import ProbqError

MOST, LONG = 2**31 - 1, 2**62 - 1
LAYERS = frozenset({"linear", "conv"})
NORMALISERS = frozenset({"softmax", "log_softmax", "normalise"})
PROVEN = NORMALISERS | {"argmax", "quotient"}  # of which all elements have the same range
SUMS = frozenset({"linear", "conv", "add", "sum", "sum_pool"})
LONG_SUMS = frozenset({"sum", "sum_pool"})  # in 64 bits where 31 do not hold them and they are rounded next
PRODUCTS = frozenset({"product", "matmul"})
SAME_LEVELS = frozenset({"max_pool", "reshape", "permute", "repeat", "slice"})


@dataclass(frozen=True)
class Type:
    """A type is an integer type of C99 for values of `low .. high`; 64-bit words only hold bits."""

    name: str
    bits: int
    low: int
    high: int


def _type(bits: int, signed: bool) -> Type:
    low = -(2 ** (bits - 1)) if signed else 0
    return Type(f"{'' if signed else 'u'}int{bits}_t", bits, low, low + 2**bits - 1)


U8, I8, I16, I32, U64 = _type(8, False), _type(8, True), _type(16, True), _type(32, True), _type(64, False)
U16, I64 = _type(16, False), _type(64, True)


def narrowest(low: int, high: int, types: Sequence[Type] = (U8, I8, I16, I32)) -> Type:
    """Return the first of the types that holds `low .. high`.

    >>> narrowest(0, 255).name, narrowest(-1, 1).name, narrowest(0, 256).name
    ('uint8_t', 'int8_t', 'int16_t')
    """
    for each in types:
        if each.low <= low and high <= each.high:
            return each
    raise ProbqError(f"integers {low} .. {high} fit none of {', '.join(each.name for each in types)}")


@dataclass(frozen=True)
class ElementRange:
    """A range holds the least and greatest integer of each element, and the largest partial sum on the way.

    Attributes:
        low, high: int64 of the value's shape.
        most: no partial sum exceeds it in magnitude.
        step: all values are `low.min() + step * k`.
    """

    low: np.ndarray
    high: np.ndarray
    most: int
    step: int = 1

    @property
    def limits(self) -> tuple[int, int]:
        """Return the least and greatest integer of all elements."""
        return int(self.low.min()), int(self.high.max())

    @property
    def type(self) -> Type:
        """Return the narrowest type for the values."""
        return narrowest(*self.limits)

    @property
    def sum_type(self) -> Type:
        """Return a type for the values and the partial sums on the way."""
        return I32 if self.most <= MOST else I64


def ranges(model: IntegerModel) -> Mapping[str, ElementRange]:
    """Return the range of every node's value, found by running the interpreter on intervals.

    Raises:
        ProbqError: a value could leave 31 bits and is no sum that is rounded next, or has no elements.
    """
    found: dict[str, ElementRange] = {}
    short = {output.node for output in model.outputs}
    short |= {name for node in model.every_node if not _takes_long(node) for name in node.inputs}
    short |= {name for node in model.nodes for name in results(node)}
    proven = model.ranges

    def add(nodes: Iterable[Node]) -> None:
        for node in nodes:
            inputs = [found[name] for name in node.inputs]
            if node.op == SWITCH:
                add(node.body)
                ends = [found[name] for name in results(node)]
                low, high = np.minimum.reduce([x.low for x in ends]), np.maximum.reduce([x.high for x in ends])
                found[node.name] = ElementRange(low, high, 0)
                continue
            if node.body:
                found.update(_begun(node, inputs))
                add(inner for inner in node.body if inner.op not in BEGINS)
                found[node.name] = _repeated(found[node.attributes["output"]], len(inputs[0].low))
                continue
            most = LONG if node.op in LONG_SUMS and node.name not in short else MOST
            found[node.name] = _checked(node, _range(node, inputs, proven[node.name]), most)

    add(model.nodes)
    return MappingProxyType(found)


def _begun(loop: Node, inputs: Sequence[ElementRange]) -> dict[str, ElementRange]:
    """Return the ranges of what a loop's body begins with, the same at every time step."""
    steps = [ElementRange(x.low.min(0), x.high.max(0), 0, _gaps(x)) for x in sequences(loop, inputs)]
    own = {}
    for state in states(loop):
        low, high = (np.full(state.attributes["shape"], state.attributes[end], np.int64) for end in ("lo", "hi"))
        own[state.name] = _checked(state, ElementRange(low, high, 0), MOST)
    return beginning(loop, steps, own)


def _gaps(x: ElementRange) -> int:
    """Return the step of a part of a value, whose least number may be another."""
    return x.step if int(x.low.min()) == int(x.low.max()) else 1


def _repeated(output: ElementRange, count: int) -> ElementRange:
    low, high = (np.broadcast_to(end, (count, *end.shape)) for end in (output.low, output.high))
    return ElementRange(low, high, 0, output.step)


def _takes_long(node: Node) -> bool:
    """Return whether a node reads integers of 64 bits."""
    return node.op == "requantize" or node.op in LONG_SUMS


def _checked(node: Node, found: ElementRange, most: int) -> ElementRange:
    if not found.low.size:
        raise ProbqError(f"node {node.name} ({node.op}) has no elements (shape {found.low.shape}); C arrays need some")
    reached = max(found.most, -int(found.low.min()), int(found.high.max()))
    if reached > most:
        raise ProbqError(
            f"node {node.name} ({node.op}) cannot be written in C: its integers may reach {reached:,}, the limit is "
            f"{most:,} ({most.bit_length()} bits); use narrower widths"
        )
    return found


def _range(node: Node, inputs: list[ElementRange], proven: Range) -> ElementRange:
    if node.op == "input":
        return _input(node)
    if node.op == "embedding":
        shape = (*inputs[0].low.shape, node.tensors["weight"].shape[1])
        weight = node.tensors["weight"]
        return ElementRange(np.broadcast_to(weight.min(0), shape), np.broadcast_to(weight.max(0), shape), 0)
    if node.op in LAYERS:
        return _layer(node, inputs[0])
    if node.op == "table":
        shape, entries = inputs[0].low.shape, reachable(node, *inputs[0].limits)[1]
        return ElementRange(np.full(shape, entries.min()), np.full(shape, entries.max()), 0)
    if node.op in PROVEN:
        return ElementRange(np.full(proven.shape, proven.low), np.full(proven.shape, proven.high), 0)
    if node.op == "where":
        lows, highs = (
            [np.broadcast_to(end, proven.shape) for end in ends]
            for ends in zip(*((x.low, x.high) for x in inputs[1:]), strict=True)
        )
        return ElementRange(np.minimum(*lows), np.maximum(*highs), 0)
    if node.op in PRODUCTS:
        return _product(node, inputs)
    ends = [evaluate(node, *(np.stack([each.low, each.high]) for each in inputs))]
    low, high = ends[0].min(0), ends[0].max(0)
    most = 0
    if node.op in SUMS:
        largest = (np.maximum(np.abs(each.low), np.abs(each.high))[None] for each in inputs)
        most = int(evaluate(node, *largest).max(initial=0))
    return ElementRange(low, high, most, _step(node, inputs))


def _input(node: Node) -> ElementRange:
    shape, attributes = tuple(node.attributes["shape"]), node.attributes
    if attributes.get("index"):
        return ElementRange(np.zeros(shape, np.int64), np.full(shape, attributes["count"] - 1), 0)
    start, step = attributes.get("start", 0), attributes.get("step", 1)
    low, high = (np.full(shape, start + step * attributes[end], np.int64) for end in ("lo", "hi"))
    return ElementRange(low, high, 0, step)


def _layer(node: Node, x: ElementRange) -> ElementRange:
    weight, bias = node.tensors["weight"], node.tensors["bias"]
    parts = (
        (np.maximum(weight, 0), bias),
        (np.minimum(weight, 0), np.zeros_like(bias)),
        (np.abs(weight), np.abs(bias)),
    )
    up, down, size = (dataclasses.replace(node, tensors={"weight": w, "bias": b}, packing={}) for w, b in parts)
    ends = np.stack([x.low, x.high])
    rising, falling = evaluate(up, ends), evaluate(down, ends[::-1])
    most = int(evaluate(size, np.maximum(np.abs(x.low), np.abs(x.high))[None]).max(initial=0))
    return ElementRange(rising[0] + falling[0], rising[1] + falling[1], most)


def _product(node: Node, inputs: list[ElementRange]) -> ElementRange:
    """Return the range of a product: it is least and greatest at the ends of both; sums of matrices are bounded by all.

    For matrices all numbers of one are taken to have the same ends.
    """
    x, y = inputs
    if node.op == "product":
        pairs = [(a, b) for a in (x.low, x.high) for b in (y.low, y.high)]
        first, second = (np.stack(ends) for ends in zip(*pairs, strict=True))
        found = evaluate(node, first, second)
        return ElementRange(found.min(0), found.max(0), int(np.abs(found).max(initial=0)))
    length, shape = x.low.shape[-1], shape_of(node, [x.low.shape, y.low.shape])
    products = [a * b * length for a in x.limits for b in y.limits]
    most = max(map(abs, products))
    return ElementRange(np.full(shape, min(products)), np.full(shape, max(products)), most)


def _step(node: Node, inputs: list[ElementRange]) -> int:
    if node.op == "requantize":
        return int(node.attributes.get("step", 1))
    return inputs[0].step if node.op in SAME_LEVELS else 1


@dataclass(frozen=True)
class Buffer:
    """A buffer is memory of one value or of a step's scratch.

    It is a place in a static pool unless it has a `fixed` C expression.
    """

    key: int
    type: Type
    elements: int
    fixed: str = ""


@dataclass(frozen=True)
class View:
    """A view is a value in a buffer: element `[i, j, ...]` is at `offset + i * strides[0] + j * strides[1] + ...`."""

    buffer: Buffer
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    def is_dense(self, order: Sequence[int] | None = None) -> bool:
        """Return whether the elements lie side by side with the axes in this order, by default their own."""
        axes = range(len(self.shape)) if order is None else order
        expected = 1
        for axis in reversed(list(axes)):
            if self.shape[axis] != 1 and self.strides[axis] != expected:
                return False
            expected *= self.shape[axis]
        return True


def dense(shape: Sequence[int], order: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the strides of a value whose axes lie in the given order, the last one fastest.

    >>> dense((2, 3, 4)), dense((2, 3, 4), (1, 2, 0))
    ((12, 4, 1), (1, 8, 2))
    """
    strides, next_stride = [0] * len(shape), 1
    for axis in reversed(range(len(shape)) if order is None else list(order)):
        strides[axis] = next_stride
        next_stride *= shape[axis]
    return tuple(strides)


def channels_last(axes: int) -> tuple[int, ...]:
    """Return the order of axes that puts the first one last."""
    return (*range(1, axes), 0)
