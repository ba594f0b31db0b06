"""Layers and requantizations become QONNX here."""

from dataclasses import dataclass

import numpy as np

from probq.export.common.requantization import Shift, as_shift, to_shift
from probq.export.onnx.graph import Graph
from probq.export.qonnx.graph import Wire, bipolar, check_exact, limited, parameter, quant, real, width
from probq.integer import Node
from probq.integer.ranges import Range, accumulators
from probq.utils.errors import ProbqError


@dataclass(frozen=True)
class Flavour:
    """A flavour is what a reader of QONNX wants.

    Attributes:
        plain_bias: biases as bare constants, not behind a `Quant` node.
        channel_scales: whether weights may have a scale per output channel; else they share the finest.
    """

    plain_bias: bool
    channel_scales: bool


HLS4ML, FINN = Flavour(False, False), Flavour(True, True)


def layer(graph: Graph, node: Node, x: Wire, reached: Range, flavour: Flavour, exponent: int | None) -> Wire:
    """Add a layer whose accumulators are read as they are, on the grid `2^exponent` (by default the input's)."""
    exponent = x.exponent if exponent is None else exponent
    low, high = accumulators(node, Range(x.low, x.high))
    check_exact(low, high, "its accumulator")
    bias = node.tensors["bias"]
    grid = np.full(len(bias), exponent, np.int64)
    name = _product(graph, node, x, grid, bias, 0, flavour)
    return Wire(name, exponent, reached.low, reached.high, reached.shape)


def fused(graph: Graph, node: Node, requantize: Node, x: Wire, shape: tuple[int, ...], flavour: Flavour) -> Wire | str:
    """Add a layer and its requantization, or say why the two have to stay apart.

    `Quant` rounds half to even. With the bias `2 (b + add - 2^(n - 1)) + 1` at half the accumulator's scale no
    accumulator lies on a tie, and the result is `floor((acc + add) / 2^n)`.
    """
    shift = as_shift(requantize, node, len(shape))
    if isinstance(shift, str):
        return shift
    lo, hi = requantize.attributes["lo"], requantize.attributes["hi"]
    exponent = 0 if _binary(requantize) else -width(min(lo, 0), hi).bits
    bias = 2 * node.tensors["bias"] + _centred(shift, requantize)
    low, high = accumulators(node, Range(x.low, x.high))
    added = bias - 2 * node.tensors["bias"]
    check_exact(2 * low + np.minimum(added, 0), 2 * high + np.maximum(added, 0), "twice its accumulator")
    name = _product(graph, node, x, exponent - shift.shift, bias, 1, flavour)
    return rounded(graph, name, requantize, exponent, shape)


def requantized(graph: Graph, node: Node, x: Wire) -> Wire:
    """Add a requantization that does not directly follow a layer: constant, scale and rounding one by one.

    Raises:
        ProbqError: its multiplier is no power of two.
    """
    parts = np.broadcast_arrays(*(node.tensors[name] for name in ("multiplier", "add", "shift")))
    shift = to_shift(*parts)
    if isinstance(shift, str):
        raise ProbqError(
            f'{shift}, and FPGA flows only shift; export to ONNX or C, or quantize with Plan(profile="shift"), whose '
            "scales are powers of two, let averages and constants be of such, and normalisations follow layers"
        )
    added = _centred(shift, node)
    check_exact(2 * x.low + np.minimum(added, 0), 2 * x.high + np.maximum(added, 0), "twice its input")
    name = x.name
    if added.any():
        name = graph.node("Add", [name, graph.constant(_compact(real(added, x.exponent - 1)), "float32")])
    exponent = x.exponent + int(shift.shift.max())
    factor = exponent - x.exponent - shift.shift
    if factor.any():
        name = graph.node("Mul", [name, graph.constant(_compact(real(1, factor)), "float32")])
    return rounded(graph, name, node, exponent, x.shape)


def rounded(graph: Graph, name: str, node: Node, exponent: int, shape: tuple[int, ...]) -> Wire:
    """Add the rounding of an accumulator that lies on no tie to a requantization's levels.

    Raises:
        ProbqError: the levels are neither consecutive integers nor binary.
    """
    lo, hi = node.attributes["lo"], node.attributes["hi"]
    if _binary(node):
        name = bipolar(graph, name, exponent)
        low, high = 2 * lo - 1, 2 * hi - 1
        name = name if (low, high) == (-1, 1) else limited(graph, name, exponent, low, high)
        return Wire(name, exponent, low, high, shape)
    if node.attributes.get("step", 1) != 1 or node.attributes.get("start", 0) != 0:
        raise ProbqError("its levels are neither consecutive integers nor -1 and 1; export to ONNX or C")
    name = limited(graph, name, exponent, 0, None) if lo >= 0 else name
    held = width(lo, hi)
    name = quant(graph, name, held, exponent)
    if (lo, hi) != held.limits:
        name = limited(graph, name, exponent, lo, hi)
    return Wire(name, exponent, lo, hi, shape)


def _binary(node: Node) -> bool:
    spec = node.attributes
    return (spec.get("start", 0), spec.get("step", 1)) == (-1, 2) and spec["lo"] >= 0 and spec["hi"] <= 1


def _centred(shift: Shift, node: Node) -> np.ndarray:
    """Return twice what to add so that rounding to nearest gives the code, without ties.

    For binary levels the sign gives it.
    """
    if _binary(node):
        if (shift.shift < 0).any():
            raise ProbqError("its levels are coarser than its steps; export to ONNX or C")
        return 2 * (shift.add - np.left_shift(1, shift.shift)) + 1
    return 2 * shift.rounding + (shift.shift > 0)


def _compact(numbers: np.ndarray) -> np.ndarray:
    same = numbers.size and (numbers == numbers.reshape(-1)[0]).all()
    return numbers.reshape(-1)[0] if same else numbers


def _product(
    graph: Graph, node: Node, x: Wire, grid: np.ndarray, bias: np.ndarray, finer: int, flavour: Flavour
) -> str:
    """Add the layer's operator.

    `grid` holds the exponent of every output channel's accumulator, `[outputs]`; `bias` lies on a grid that is finer by
    `finer` powers of two.
    """
    weight, exponent = _weights(node, grid - x.exponent, flavour)
    bias_grid = int(grid.min()) - finer
    shifted_bias = bias << (grid - finer - bias_grid)
    if flavour.plain_bias:
        offset = graph.constant(real(shifted_bias, bias_grid), "float32")
    else:
        held = width(int(shifted_bias.min(initial=0)), int(shifted_bias.max(initial=0)), signed=True)
        offset = quant(graph, graph.constant(real(shifted_bias, bias_grid), "float32"), held, bias_grid)
    kernel = parameter(graph, weight, exponent)
    if node.op == "linear":
        return graph.node("Add", [graph.node("MatMul", [x.name, kernel]), offset])
    spec = node.attributes
    pads = [low for low, _ in spec["padding"]] + [high for _, high in spec["padding"]]
    attributes = {"strides": spec["stride"], "dilations": spec["dilation"], "group": spec["groups"], "pads": pads}
    attributes["kernel_shape"] = list(weight.shape[2:])
    if spec["transposed"]:
        attributes["output_padding"] = spec.get("output_padding") or [0] * len(spec["stride"])
    return graph.node("ConvTranspose" if spec["transposed"] else "Conv", [x.name, kernel, offset], **attributes)


def _weights(node: Node, grid: np.ndarray, flavour: Flavour) -> tuple[np.ndarray, np.ndarray | int]:
    """Return a weight's integers as its operator takes them, and their exponents.

    Where channels may not have scales of their own, the integers are made multiples of the finest.
    """
    weight = node.tensors["weight"]
    finest = int(grid.min())
    column = _column(node, grid)
    if (grid == finest).all() or not flavour.channel_scales:
        moved, exponent = weight << (column - finest), np.asarray(finest)
    else:
        moved, exponent = weight, column
    if node.op == "linear":
        return moved.T, exponent.T if exponent.ndim else finest
    return moved, exponent if exponent.ndim else finest


def _column(node: Node, grid: np.ndarray) -> np.ndarray:
    """Return `[outputs]` in the shape that broadcasts to the weight."""
    weight, groups = node.tensors["weight"], node.attributes.get("groups", 1)
    if not node.attributes.get("transposed"):
        return grid.reshape(-1, *[1] * (weight.ndim - 1))
    inside = np.repeat(grid.reshape(groups, 1, -1), len(weight) // groups, axis=1)
    return inside.reshape(len(weight), -1, *[1] * (weight.ndim - 2))
