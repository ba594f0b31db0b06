"""QONNX nodes quantize real numbers to a power-of-two grid, on which they stand for integers."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from probq.export.onnx.graph import Graph
from probq.utils.errors import ProbqError

DOMAIN = "qonnx.custom_op.general"
EXACT = 2**24  # float32 holds integers exactly up to here


@dataclass(frozen=True)
class Wire:
    """A wire is a float32 tensor in the graph that stands for integers: `tensor = value * 2^exponent`.

    Attributes:
        name: the name of the tensor.
        exponent: the exponent of the grid.
        low, high: range of the value.
        shape: without the batch.
    """

    name: str
    exponent: int
    low: int
    high: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Width:
    """A width is what a `Quant` node needs to hold integers `lo .. hi`: bits, signedness, and whether it is narrow."""

    bits: int
    signed: bool
    narrow: bool

    @property
    def limits(self) -> tuple[int, int]:
        """Return the integers that it clips to."""
        if not self.signed:
            return 0, 2**self.bits - 1
        return self.narrow - 2 ** (self.bits - 1), 2 ** (self.bits - 1) - 1


def width(low: int, high: int, signed: bool = False) -> Width:
    """Return the narrowest width that holds `low .. high`; a signed one has at least 2 bits.

    >>> width(-3, 3)
    Width(bits=3, signed=True, narrow=True)
    """
    if low >= 0 and not signed:
        return Width(max(high.bit_length(), 1), False, False)
    bits = max((-low - 1).bit_length() if low < 0 else 0, high.bit_length(), 1) + 1
    return Width(bits, True, low > -(2 ** (bits - 1)))


def check_exact(low: Any, high: Any, what: str) -> None:
    """Refuse integers that float32 does not hold.

    Raises:
        ProbqError: naming the bound and the limit.
    """
    bound = max(-int(np.min(low)), int(np.max(high)), 0)
    if bound >= EXACT:
        raise ProbqError(
            f"{what} may reach {bound:,}, the limit is {EXACT - 1:,} (24 bits of float32, in which QONNX computes); "
            "use narrower widths, or export to ONNX or C"
        )


def real(integers: Any, exponent: Any) -> np.ndarray:
    """Return `integers * 2^exponent` in float32."""
    return (np.asarray(integers, np.float64) * np.exp2(np.asarray(exponent, np.float64))).astype(np.float32)


def quant(graph: Graph, name: str, held: Width, exponent: Any) -> str:
    """Add a `Quant` node: to the nearest multiple of `2^exponent`, clipped to the width's limits."""
    inputs = [name, *(graph.constant(value, "float32") for value in (real(1, exponent), 0.0, float(held.bits)))]
    flags = {"signed": int(held.signed), "narrow": int(held.narrow), "rounding_mode": "ROUND"}
    return graph.node("Quant", inputs, domain=DOMAIN, **flags)


def bipolar(graph: Graph, name: str, exponent: Any) -> str:
    """Add a `BipolarQuant` node: `2^exponent` where the tensor is 0 or more, `-2^exponent` elsewhere."""
    return graph.node("BipolarQuant", [name, graph.constant(real(1, exponent), "float32")], domain=DOMAIN)


def parameter(graph: Graph, integers: np.ndarray, exponent: Any) -> str:
    """Add parameters behind the quantizer that holds them; what is only ever -1 and 1 is bipolar.

    Args:
        graph: the graph.
        integers: the integers of the parameter.
        exponent: one, or an array that broadcasts to the parameter.
    """
    name = graph.constant(real(integers, exponent), "float32")
    if integers.size and (np.abs(integers) == 1).all():
        return bipolar(graph, name, exponent)
    low, high = (int(integers.min()), int(integers.max())) if integers.size else (0, 0)
    return quant(graph, name, width(low, high, signed=True), exponent)


def limited(graph: Graph, name: str, exponent: int, lo: int | None, hi: int | None) -> str:
    """Add a clip to integers `lo .. hi`; a `Relu` where it is one."""
    if (lo, hi) == (None, None):
        return name
    if lo == 0 and hi is None:
        return graph.node("Relu", [name])
    ends = ["" if end is None else graph.constant(real(end, exponent), "float32") for end in (lo, hi)]
    return graph.node("Clip", [name, *(ends if ends[1] else ends[:1])])


def at(graph: Graph, x: Wire, exponent: int) -> Wire:
    """Return the same integers on another grid."""
    if x.exponent == exponent:
        return x
    name = graph.node("Mul", [x.name, graph.constant(real(1, exponent - x.exponent), "float32")])
    return Wire(name, exponent, x.low, x.high, x.shape)
