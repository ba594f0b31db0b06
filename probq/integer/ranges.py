"""Every node of an integer model has a range that holds for all inputs, and a shape."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from probq.integer.loops.body import BEGINS, beginning, sequences, states
from probq.integer.loops.meaning import check_begun, check_states
from probq.integer.node import Node
from probq.integer.normalisers.meaning import (
    Exponentials,
    check_log_softmax,
    check_normalise,
    check_softmax,
    largest,
)
from probq.integer.normalisers.quotient import check_quotient, quotient_ends
from probq.integer.operations import NORMALISE
from probq.integer.shapes import Shape, axis_of
from probq.integer.switches.body import SWITCH
from probq.integer.switches.meaning import check_choice
from probq.utils.errors import ProbqError

LAYERS = ("linear", "conv")
EXACT, MOST = 2**53, 2**63  # of layers, which are held in float64, and of int64


@dataclass(frozen=True)
class Range:
    """A range is the integers `low .. high` of a value of a shape without the batch.

    They are Python integers, which cannot overflow.
    """

    low: int
    high: int
    shape: tuple[int, ...] = ()

    @property
    def bound(self) -> int:
        """Return the largest magnitude."""
        return max(-self.low, self.high, 0)

    def within(self, low: int, high: int) -> bool:
        """Return whether the whole range lies in `low .. high`."""
        return low <= self.low and self.high <= high


def ranges(
    nodes: Sequence[Node], shapes: Mapping[str, Shape], begun: Mapping[str, Range] = MappingProxyType({})
) -> dict[str, Range]:
    """Return every node's range by name, proven by interval arithmetic for all inputs that the nodes accept.

    Args:
        nodes: each after its inputs.
        shapes: of all values.
        begun: ranges that are known already.

    Raises:
        ProbqError: a sum of a layer could reach 2^53, or another value 2^63. A requantization's products may be proven
            only by what is known of each channel; the interpreter checks them on the values at hand.
    """
    found = dict(begun)
    for node in nodes:
        values = [found[name] for name in node.inputs]
        if node.op == SWITCH:
            check_choice(node, values[0])
            found |= ranges(node.body, shapes, found)
            low, high = _hull(node, [found[name] for name in node.attributes["outputs"]])
            found[node.name] = Range(low, high, shapes[node.name])
            continue
        if node.body:
            found |= _of_body(node, values, shapes)
            output = found[node.attributes["output"]]
            found[node.name] = Range(output.low, output.high, shapes[node.name])
            continue
        if node.op in LAYERS:
            _check_exact(node, _sums(node, values[0]), EXACT)
        low, high = _INTERVALS[node.op](node, values)
        found[node.name] = Range(low, high, shapes[node.name])
        _check_exact(node, found[node.name].bound, MOST)
    return found


def _of_body(loop: Node, inputs: list[Range], shapes: Mapping[str, Shape]) -> dict[str, Range]:
    """Return the ranges of a loop's body, whose states keep within their limits at every step."""
    own = {node.name: Range(node.attributes["lo"], node.attributes["hi"], shapes[node.name]) for node in states(loop)}
    check_begun(loop, inputs)
    begun = beginning(loop, [Range(x.low, x.high, x.shape[1:]) for x in sequences(loop, inputs)], own)
    found = ranges([node for node in loop.body if node.op not in BEGINS], shapes, begun)
    check_states(loop, dict(shapes), lambda name, lo, hi: found[name].within(lo, hi))
    return found


def _sums(node: Node, x: Range) -> int:
    """Return the largest magnitude of any partial sum of a layer, as the interpreter checks it."""
    row = int(np.abs(rows(node).astype(np.float64)).sum(1).max(initial=0))
    return x.bound * row * (2**20 + 1) // 2**20 + max(map(abs, _extent(node.tensors["bias"])))


def _check_exact(node: Node, largest: int, limit: int) -> None:
    if largest >= limit:
        reached = f"{largest:,}" if largest < 10**30 else f"10^{len(str(largest)) - 1}"
        raise ProbqError(
            f"node {node.name} ({node.op}): its integers may reach {reached}, the limit is {limit - 1:,} "
            f"({limit.bit_length() - 1} bits, for exact arithmetic); use narrower widths"
        )


def rows(node: Node) -> np.ndarray:
    """Return a layer's weight as `[outputs, products]`: each row meets the inputs of one accumulator."""
    weight = node.tensors["weight"]
    if node.attributes.get("transposed"):
        groups = node.attributes["groups"]
        weight = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
        return weight.reshape(weight.shape[0] * weight.shape[1], -1)
    return weight.reshape(len(weight), -1)


def accumulators(node: Node, x: Range) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and greatest accumulator of every output channel of a layer, int64 `[outputs]`.

    low_o = b_o + sum_i min(w_oi x_low, w_oi x_high), high_o likewise; zero padding is an input too.
    """
    low, high = min(x.low, 0), max(x.high, 0)
    products = rows(node)
    up, down = np.maximum(products, 0).sum(1), np.minimum(products, 0).sum(1)
    bias = node.tensors["bias"]
    return bias + up * low + down * high, bias + up * high + down * low


def _levels(node: Node, _: list[Range]) -> tuple[int, int]:
    spec = node.attributes
    if spec.get("index"):
        return 0, spec["count"] - 1
    start, step = spec.get("start", 0), spec.get("step", 1)
    return start + step * spec["lo"], start + step * spec["hi"]


def _layer(node: Node, values: list[Range]) -> tuple[int, int]:
    low, high = accumulators(node, values[0])
    return int(min(low, default=0)), int(max(high, default=0))


def _embedding(node: Node, values: list[Range]) -> tuple[int, int]:
    count = len(node.tensors["weight"])
    if not values[0].within(0, count - 1):
        low, high = values[0].low, values[0].high
        raise ProbqError(f"node {node.name} (embedding): indices {low} .. {high} leave its {count} rows")
    return _extent(node.tensors["weight"])


def _multiply(node: Node, values: list[Range]) -> tuple[int, int]:
    ends = [m * end for m in _extent(node.tensors["multiplier"]) for end in (values[0].low, values[0].high)]
    return min(ends), max(ends)


def _clip(node: Node, values: list[Range]) -> tuple[int, int]:
    low, high = values[0].low, values[0].high
    lo, hi = node.attributes["lo"], node.attributes["hi"]
    if lo is not None:
        low, high = max(low, lo), max(high, lo)
    if hi is not None:
        low, high = min(low, hi), min(high, hi)
    return low, high


def _sum_pool(node: Node, values: list[Range]) -> tuple[int, int]:
    taps = math.prod(node.attributes["kernel"])
    low, high = values[0].low, values[0].high
    if any(end for pair in node.attributes["padding"] for end in pair):
        low, high = min(low, 0), max(high, 0)
    return taps * low, taps * high


def _sum(node: Node, values: list[Range]) -> tuple[int, int]:
    shape = values[0].shape
    count = math.prod(shape[axis_of(axis, shape)] for axis in node.attributes["axes"])
    return count * values[0].low, count * values[0].high


def _table(node: Node, values: list[Range]) -> tuple[int, int]:
    return _extent(reachable(node, values[0].low, values[0].high)[1])


def reachable(node: Node, low: int, high: int) -> tuple[int, np.ndarray]:
    """Return the part of a table for arguments `low .. high`, as its first argument and its entries."""
    first = node.attributes["first"]
    start = max(low - first, 0)
    return first + start, node.tensors["table"][start : high - first + 1]


def _pad(_: Node, values: list[Range]) -> tuple[int, int]:
    return min(values[0].low, 0), max(values[0].high, 0)


def _add(_: Node, values: list[Range]) -> tuple[int, int]:
    return sum(value.low for value in values), sum(value.high for value in values)


def exponentials_of(node: Node) -> Exponentials:
    """Return the exponentials of a softmax."""
    return Exponentials(node.tensors["coarse"], node.tensors["fine"], node.attributes["dropped"])


def _softmax(node: Node, values: list[Range]) -> tuple[int, int]:
    (x,), bits = values, node.attributes["bits"]
    _checked(node, check_softmax, x.shape[-1], x.low, x.high, exponentials_of(node), bits)
    return 0, 2**bits


def _log_softmax(node: Node, values: list[Range]) -> tuple[int, int]:
    (x,), factor = values, node.attributes["factor"]
    e, octaves, logarithms = exponentials_of(node), node.tensors["octaves"], node.tensors["logarithms"]
    _checked(node, check_log_softmax, x.shape[-1], x.low, x.high, e, (octaves, logarithms), factor)
    bits = e.first.bit_length() - 1, (e.largest * x.shape[-1]).bit_length()  # the highest of the least and largest sum
    ends = _extent(octaves[bits[0] : bits[1]]), _extent(logarithms)
    return (x.low - x.high) * factor - sum(high for _, high in ends), -sum(low for low, _ in ends)


def _normalise(node: Node, values: list[Range]) -> tuple[int, int]:
    (x,) = values
    _checked(node, check_normalise, x.shape[-1], x.low, x.high, tuple(node.attributes[name] for name in NORMALISE))
    end = largest(x.shape[-1], node.attributes["bits"])
    return -end, end


def _checked(node: Node, check: Callable[..., None], *given: Any) -> None:
    """Check the integers on the way to a node's, and name it where they are too large."""
    try:
        check(*given)
    except ProbqError as error:
        raise ProbqError(f"node {node.name} ({node.op}): {error}") from error


def _product(_: Node, values: list[Range]) -> tuple[int, int]:
    return corners(*values)


def _quotient(node: Node, values: list[Range]) -> tuple[int, int]:
    x, d = values
    up, down, lo, hi = (node.attributes[name] for name in ("up", "down", "lo", "hi"))
    _checked(node, check_quotient, x.bound, d.bound, up, down)
    low, high = quotient_ends((x.low, x.high), (d.low, d.high), up)
    return min(max(low, lo), hi), min(max(high, lo), hi)


def _matmul(node: Node, values: list[Range]) -> tuple[int, int]:
    length = values[0].shape[-1]
    _check_exact(node, length * values[0].bound * values[1].bound, EXACT)
    low, high = corners(*values)
    return length * low, length * high


def corners(x: Range, y: Range) -> tuple[int, int]:
    """Return the least and greatest product of a number of each range."""
    ends = [a * b for a in (x.low, x.high) for b in (y.low, y.high)]
    return min(ends), max(ends)


def _hull(_: Node, values: list[Range]) -> tuple[int, int]:
    return min(value.low for value in values), max(value.high for value in values)


def _argmax(node: Node, values: list[Range]) -> tuple[int, int]:
    shape = values[0].shape
    return 0, shape[axis_of(node.attributes["axis"], shape)] - 1


def _extent(tensor: np.ndarray) -> tuple[int, int]:
    return (int(tensor.min()), int(tensor.max())) if tensor.size else (0, 0)


_INTERVALS: Mapping[str, Callable[[Node, list[Range]], tuple[int, int]]] = MappingProxyType(
    {
        "input": _levels, "requantize": _levels, "linear": _layer, "conv": _layer, "embedding": _embedding,
        "multiply": _multiply, "clip": _clip, "max_pool": _hull, "sum_pool": _sum_pool, "sum": _sum,
        "reshape": _hull, "permute": _hull, "add": _add, "concat": _hull, "table": _table,
        "repeat": _hull, "pad": _pad, "slice": _hull, "softmax": _softmax, "log_softmax": _log_softmax,
        "normalise": _normalise, "where": lambda node, values: _hull(node, values[1:]), "argmax": _argmax,
        "product": _product, "quotient": _quotient, "matmul": _matmul,
    }
)  # fmt: skip
