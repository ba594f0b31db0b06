"""A graph of standard ONNX operators is in the making here, with the integer tensors that flow through it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from probq.utils.errors import ProbqError
from probq.utils.optional_import import require

IR_VERSION = 8
OPSET, OPSET_PACKED = 13, 18  # integers need 13, unpacking bits needs 18
INT32, INT64 = 2**31 - 1, 2**63 - 1


@dataclass(frozen=True)
class Edge:
    """An edge is a tensor in the graph that stands for integers: `value = tensor - zero`.

    Attributes:
        name: the name of the tensor.
        type: its numpy type: uint8, int32 or int64.
        zero: the zero point, not 0 only where the type is uint8.
        low, high: range of the value.
        shape: without the batch.
        limits: what the tensor is still to be clipped to before it holds the value, as `Clip` may come later; `Graph`
            does it in `settled`.
    """

    name: str
    type: str
    zero: int
    low: int
    high: int
    shape: tuple[int, ...]
    limits: tuple[int | None, int | None] = (None, None)


@dataclass
class Graph:
    """A graph has ONNX nodes and constants; every method that adds a node returns its output's name.

    Attributes:
        packed: whether weights are stored at their own width.
        inputs: what the graph's inputs are called, by the names of their nodes.
        probe: name of what says whether bytes are multiplied without saturation, once it is there.
    """

    packed: bool = False
    inputs: Mapping[str, str] = field(default_factory=dict)
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    probe: str = ""
    _count: int = 0

    def fresh(self, stem: str) -> str:
        """Return a name that nothing has; a short one where the file is to be small."""
        self._count += 1
        return f"{'' if self.packed else stem + '_'}{self._count}"

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add an operator with one output."""
        output = self.fresh(op)
        name = None if self.packed else output
        self.nodes.append(require("onnx.helper", "onnx").make_node(op, list(inputs), [output], name, **attributes))
        return output

    def constant(self, value: Any, type: str) -> str:
        """Add a constant; equal scalars and short vectors share one."""
        array = np.asarray(value).astype(type)
        key = f"{type}{list(array.shape)}{array.reshape(-1).tolist()}" if array.size <= 8 else self.fresh("constant")
        self.constants.setdefault(key, array)
        return key

    def cast(self, name: str, type: str) -> str:
        """Add a conversion to a numpy type."""
        return self.node("Cast", [name], to=tensor_type(type))

    def reshape(self, name: str, shape: Sequence[int]) -> str:
        """Add a reshaping to `[batch, *shape]`."""
        return self.node("Reshape", [name, self.constant([0, *shape], "int64")])

    def padded(self, name: str) -> bool:
        """Return whether a tensor comes right from a `Pad`."""
        return any(node.op_type == "Pad" and name in node.output for node in self.nodes)

    def prune(self, outputs: Iterable[str]) -> None:
        """Drop nodes and constants that the outputs do not need."""
        wanted, kept = set(outputs), []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                kept.append(node)
                wanted.update(names_read(node))
        self.nodes = kept[::-1]
        self.constants = {name: array for name, array in self.constants.items() if name in wanted}

    def clipped(self, name: str, x: Edge) -> str:
        """Add the clip that an edge is still to get to a tensor that holds its elements, in any order."""
        limits = ["" if limit is None else self.constant(limit, x.type) for limit in x.limits]
        return self.node("Clip", [name, *limits]) if any(limits) else name

    def settled(self, x: Edge) -> Edge:
        """Return the edge with its tensor clipped."""
        return replace(x, name=self.clipped(x.name, x), limits=(None, None))

    def integers(self, x: Edge, type: str = "") -> Edge:
        """Return the value itself as int32 or int64, of the given type or by default the narrowest that holds it."""
        type = type or integer_type(x.low, x.high)
        if x.type == type:
            return x
        name = self.cast(x.name, type)
        if x.zero:
            name = self.node("Sub", [name, self.constant(x.zero, type)])
        return replace(x, name=name, type=type, zero=0)

    def limited(self, x: Edge, lo: int | None, hi: int | None) -> Edge:
        """Return the value clipped to `lo .. hi` where it may lie beyond, and never by a `Clip` of 64 bits."""
        low, high = (_clipped(end, lo, hi) for end in (x.low, x.high))
        ends = (low if low > x.low else None, high if high < x.high else None)
        if ends == (None, None):
            return x
        if x.type != "uint8" or not 0 <= low + x.zero <= high + x.zero <= 255:
            x = self.integers(x, integer_type(x.low, x.high, low, high))
        if x.type != "int64":
            shifted = [None if end is None else end + x.zero for end in ends]
            name = self.node("Clip", [x.name, *("" if end is None else self.constant(end, x.type) for end in shifted)])
            return replace(x, name=name, low=low, high=high)
        integer_type(*(end - limit for end in (x.low, x.high) for limit in (low, high)))
        name = x.name if ends[0] is None else self.larger(x.name, self.constant(low, "int64"), "int64")
        if ends[1] is not None:  # min(x, high) = high - max(high - x, 0)
            top = self.constant(high, "int64")
            name = self.node("Sub", [top, self._positive(self.node("Sub", [top, name]))])
        return replace(x, name=name, low=low, high=high)

    def larger(self, name: str, other: str, type: str) -> str:
        """Add the maximum of two tensors of one type; in 64 bits `other + max(name - other, 0)`."""
        if type != "int64":
            return self.node("Max", [name, other])
        return self.node("Add", [other, self._positive(self.node("Sub", [name, other]))])

    def _positive(self, name: str) -> str:
        """Add `max(x, 0)` of int64 as `x (1 - sign)`, its sign the highest bit.

        On x86, ONNX Runtime's `Clip`, `Min` and `Max` of int64 are wrong where two numbers agree in their upper 32
        bits: the lower ones are then compared as if they were signed.
        """
        sign = self.node("BitShift", [self.cast(name, "uint64"), self.constant(63, "uint64")], direction="RIGHT")
        return self.node("Mul", [name, self.node("Sub", [self.constant(1, "int64"), self.cast(sign, "int64")])])

    def octets(self, x: Edge) -> Edge | None:
        """Return the value as uint8 with a zero point; None where its range takes more than 8 bits."""
        if x.type == "uint8":
            return x
        zero = zero_point(x.low, x.high)
        if zero is None:
            return None
        name = self.node("Add", [x.name, self.constant(zero, x.type)]) if zero else x.name
        return replace(x, name=self.cast(name, "uint8"), type="uint8", zero=zero)


def names_read(node: Any) -> Iterator[str]:
    """Yield the names that a node takes, those in graphs within it too."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from names_read(inner)


def _clipped(number: int, lo: int | None, hi: int | None) -> int:
    number = number if lo is None else max(number, lo)
    return number if hi is None else min(number, hi)


def zero_point(low: int, high: int) -> int | None:
    """Return the zero point that brings `low .. high` to uint8, 0 where it is not needed; None where none does."""
    if low >= 0:
        return 0 if high <= 255 else None
    if low >= -128 and high <= 127:
        return 128
    return -low if low >= -255 and high - low <= 255 else None


def integer_type(*bounds: int) -> str:
    """Return int32 where it holds all these numbers, else int64.

    Raises:
        ProbqError: neither does.
    """
    most = max(map(abs, bounds), default=0)
    if most > INT64:
        raise ProbqError(f"its integers may reach {most:,}, the limit is {INT64:,} (63 bits); use narrower widths")
    return "int32" if most <= INT32 else "int64"


def tensor_type(type: str) -> int:
    """Return ONNX's number of a numpy type."""
    return int(require("onnx.helper", "onnx").np_dtype_to_tensor_dtype(np.dtype(type)))
