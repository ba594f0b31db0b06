"""Linear layers and convolutions in ONNX: `QLinearConv` where it is certified exact, else integer products."""

from dataclasses import dataclass, replace

import numpy as np

from probq.errors import ProbqError
from probq.export.kernels import Kernel, kernel
from probq.export.onnx_graph import INT32, Edge, Graph, integer_type, zero_point
from probq.export.ranges import Range, accumulators
from probq.export.requantization import as_shift
from probq.integer import Node
from probq.packing import smallest

CERTIFIED = 2**22
SATURATED = 32767  # where x86 without VNNI saturates the sum of two products


@dataclass(frozen=True)
class FastForm:
    """A layer and its requantization as `QLinearConv`.

    Attributes:
        scale: float32 multiplier of each output channel, `[outputs]`.
        bias: int32 on the accumulator's grid, with what makes the rounding right and the output non-negative.
        zero: added to the codes so that they are not negative.
    """

    scale: np.ndarray
    bias: np.ndarray
    zero: int


def fast_form(node: Node, requantize: Node | None, x: Edge, rank: int) -> FastForm | str:
    """The certified form of a layer, or why there is none.

    `QLinearConv` rounds `acc * scale` in float32, half to even. With `scale = nextafter(2^-n, inf)` and a bias that
    centres the rounding it gives `floor((acc + add) / 2^n)` exactly while `(qmax + 1) 2^n <= 2^22`.

    Args:
        node: the layer.
        requantize: the only reader of its output, if that is a requantization.
        x: its input.
        rank: axes of its output without the batch.
    """
    if requantize is None:
        return "no requantization of its own follows"
    if x.type != "uint8" and zero_point(x.low, x.high) is None:
        return "its input takes more than 8 bits"
    if stored(node.tensors["weight"], 0) is None:
        return "its weight takes more than 8 bits"
    shift = as_shift(requantize, node, rank)
    if isinstance(shift, str):
        return shift
    lo, hi = requantize.attributes["lo"], requantize.attributes["hi"]
    zero, n = max(-lo, 0), shift.shift
    if hi + zero > 255 or hi < 0:
        return "its output takes more than 8 bits"
    if n.size and (hi + zero + 1) * 2 ** int(n.max()) > CERTIFIED:
        return f"(qmax + 1) * 2^n = {hi + zero + 1} * 2^{n.max()} exceeds 2^22, beyond which float32 may round wrongly"
    added = shift.rounding.astype(object) + [_divided(zero, -int(k)) for k in n]
    low, high = accumulators(node, Range(x.low, x.high))
    if any(abs(end) > INT32 for end in (*(low + added), *(high + added), *(node.tensors["bias"] + added))):
        return "its accumulator takes more than 31 bits"
    if any(zero % 2 ** max(-int(k), 0) for k in n):
        return "its steps are coarser than its output's zero point"
    power = np.exp2(-n.astype(np.float64)).astype(np.float32)
    scale = np.where(n > 0, np.nextafter(power, np.float32(np.inf)), power)
    return FastForm(scale, (node.tensors["bias"] + added).astype(np.int64), zero)


def _divided(zero: int, power: int) -> int:
    return zero >> power if power > 0 else zero << -power


def fused(graph: Graph, node: Node, requantize: Node, form: FastForm, x: Edge, shape: tuple[int, ...]) -> Edge:
    """Adds a layer and its requantization as one `QLinearConv`; the edge is that of the requantization."""
    x, shaped = _octets(graph, x), kernel(node)
    source, width = shaped.prepared(graph, x), x.shape[-1]
    if node.op == "linear":
        many = -1 if len(x.shape) > 1 else 0
        source = graph.node("Reshape", [source, graph.constant([many, width, 1, 1], "int64")])
        shaped = shaped.reshaped(lambda weight: weight.reshape(*weight.shape, 1, 1))
    weight, weight_zero = _weight(graph, shaped, x)
    scale = form.scale[0] if form.scale.size and (form.scale == form.scale[0]).all() else form.scale
    one, zero = graph.constant(1, "float32"), graph.constant(0, "uint8")
    bias = graph.weight(form.bias, "int32", smallest(form.bias))
    inputs = [source, one, graph.constant(x.zero, "uint8"), weight, graph.constant(scale, "float32"), weight_zero]
    name = graph.node("QLinearConv", [*inputs, one, zero, bias], **shaped.attributes)
    lo, hi = (requantize.attributes[end] + form.zero for end in ("lo", "hi"))
    if (lo, hi) != (0, 255):
        name = graph.node("Clip", [name, graph.constant(lo, "uint8"), graph.constant(hi, "uint8")])
    if node.op == "linear":
        many = -1 if len(x.shape) > 1 else 0
        name = graph.node("Reshape", [name, graph.constant([many, *shape], "int64")])
    return levels(graph, Edge(name, "uint8", form.zero, lo - form.zero, hi - form.zero, shape), requantize)


def levels(graph: Graph, codes: Edge, node: Node) -> Edge:
    """Adds what makes levels `start + step * code` of codes; nothing for most codebooks."""
    start, step = node.attributes.get("start", 0), node.attributes.get("step", 1)
    if (start, step) == (0, 1):
        return codes
    low, high = start + step * codes.low, start + step * codes.high
    zero, power = step * codes.zero - start, step.bit_length() - 1
    if codes.type == "uint8" and step == 2**power and 0 <= zero <= 255 and high + zero <= 255:
        name = graph.node("BitShift", [codes.name, graph.constant(power, "uint8")], direction="LEFT")
        return Edge(name if power else codes.name, "uint8", zero, low, high, codes.shape)
    type = integer_type(low, high, start, step * max(-codes.low, codes.high))
    name = graph.node("Mul", [graph.integers(codes, type).name, graph.constant(step, type)])
    name = graph.node("Add", [name, graph.constant(start, type)])
    return Edge(name, type, 0, low, high, codes.shape)


def layer(graph: Graph, node: Node, inputs: list[Edge], reached: Range) -> Edge:
    """Adds a layer as a sum of 8-bit integer products, exact for any width: `x w = sum_jk x_j w_k 256^(j + k)`.

    Raises:
        ProbqError: one product's accumulator could leave 31 bits.
    """
    terms = []
    for j, x in enumerate(_digits(graph, inputs[0])):
        for k, shaped in enumerate(_weight_digits(kernel(node), x)):
            rows = np.abs(shaped.rows(node)).sum(1)
            if rows.size and int(rows.max()) * max(-x.low, x.high) > INT32:
                raise ProbqError("a sum of 8-bit products may leave 31 bits; split the layer")
            terms.append((_product(graph, node.op, shaped, x), 256 ** (j + k)))
    type = integer_type(reached.low, reached.high) if len(terms) == 1 else "int64"
    total = ""
    for name, place in terms:
        name = graph.cast(name, type) if type != "int32" else name
        name = graph.node("Mul", [name, graph.constant(place, type)]) if place > 1 else name
        total = graph.node("Add", [total, name]) if total else name
    bias = node.tensors["bias"]
    if bias.any():
        column = bias if node.op == "linear" else bias.reshape(-1, *[1] * (len(reached.shape) - 1))
        total = graph.node("Add", [total, graph.weight(column, type, smallest(column))])
    return Edge(total, type, 0, reached.low, reached.high, reached.shape)


def _product(graph: Graph, op: str, shaped: Kernel, x: Edge) -> str:
    source = shaped.prepared(graph, x)
    if op == "linear":
        shaped = shaped.reshaped(np.transpose)
    weight, zero = _weight(graph, shaped, x)
    inputs = [source, weight, graph.constant(x.zero, "uint8"), zero]
    return graph.node("MatMulInteger" if op == "linear" else "ConvInteger", inputs, **shaped.attributes)


def _weight(graph: Graph, shaped: Kernel, x: Edge) -> tuple[str, str]:
    """Names of a weight and of its zero point."""
    how = stored(shaped.weight, x.high + x.zero)
    if how is None:
        raise ProbqError("its weight takes more than 8 bits")
    type, zero = how
    return graph.weight(shaped.weight, type, shaped.packing, zero), graph.constant(zero, type)


def stored(weight: np.ndarray, largest: int) -> tuple[str, int] | None:
    """Type and zero point of a weight of at most 8 bits: int8, or uint8 where int8 products could saturate.

    Args:
        weight: integers.
        largest: greatest uint8 that meets it.
    """
    low, high = (int(weight.min()), int(weight.max())) if weight.size else (0, 0)
    if low >= -128 and high <= 127 and 2 * largest * max(-low, high) <= SATURATED:
        return "int8", 0
    zero = zero_point(low, high)
    return None if zero is None else ("uint8", zero)


def _octets(graph: Graph, x: Edge) -> Edge:
    octets = graph.octets(x)
    if octets is None:
        raise ProbqError("its input takes more than 8 bits")
    return octets


def _digits(graph: Graph, x: Edge) -> list[Edge]:
    """The value in digits of 8 bits, least first: `x = sum_j digit_j 256^j`; the zero point's digits are theirs."""
    octets = graph.octets(x)
    if octets is not None:
        return [octets]
    zero, largest = max(-x.low, 0), x.high - min(x.low, 0)
    type = integer_type(largest)
    unsigned = "u" + type
    rest = graph.integers(x, type).name
    rest = graph.cast(graph.node("Add", [rest, graph.constant(zero, type)]), unsigned)
    found = []
    while largest:
        above = graph.node("BitShift", [rest, graph.constant(8, unsigned)], direction="RIGHT")
        back = graph.node("BitShift", [above, graph.constant(8, unsigned)], direction="LEFT")
        digit = graph.cast(graph.node("Sub", [rest, back]), "uint8")
        found.append(Edge(digit, "uint8", zero & 255, -(zero & 255), 255 - (zero & 255), x.shape))
        rest, zero, largest = above, zero >> 8, largest >> 8
    return found


def _weight_digits(shaped: Kernel, x: Edge) -> list[Kernel]:
    """The weight in digits of 8 bits, least first; all but the last lie in -128 .. 127."""
    found, rest = [], shaped.weight
    if stored(rest, x.high + x.zero) is not None:
        return [shaped]
    while stored(rest, x.high + x.zero) is None:
        digit = (rest + 128 & 255) - 128
        found.append(_numbers(shaped, digit))
        rest = rest - digit >> 8
    return [*found, _numbers(shaped, rest)]


def _numbers(shaped: Kernel, weight: np.ndarray) -> Kernel:
    return replace(shaped, weight=weight, packing=smallest(weight))
