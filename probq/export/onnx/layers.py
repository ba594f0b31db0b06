"""Linear layers and convolutions become `QLinearConv` where it is certified exact, else integer products."""

from dataclasses import dataclass, replace

import numpy as np

from probq.export.common.requantization import numbers
from probq.export.onnx.convolution import Kernel, kernel
from probq.export.onnx.float_rounding import INT32, FloatForm, IntegerRounding, float_form
from probq.export.onnx.graph import Edge, Graph, integer_type, zero_point
from probq.export.onnx.packed_parameters import parameter
from probq.integer import Node
from probq.integer.packing import smallest
from probq.integer.ranges import Range, accumulators
from probq.utils.errors import ProbqError

SATURATED = 32767  # where x86 without VNNI saturates the sum of two products
FLOAT32 = 2**24  # float32 holds every integer up to it


@dataclass(frozen=True)
class FastForm:
    """The fast form of a layer and its requantization is a `QLinearConv`.

    Attributes:
        scale: float32 multiplier of each output channel, `[outputs]`.
        bias: int32 on the accumulator's grid, with what makes the rounding right and the output non-negative.
        zero: the zero point of the codes, which makes them non-negative.
        offset: zero point of the operator's output; the rest of `zero` is in the bias.
        limits: least and greatest uint8 that the operator's output is still to be clipped to; None: not needed.
    """

    scale: np.ndarray
    bias: np.ndarray
    zero: int
    offset: int
    limits: tuple[int | None, int | None]


def fast_form(node: Node, requantize: Node | None, x: Edge, reached: Range) -> FastForm | str:
    """Return the certified form of a layer, or why there is none.

    `QLinearConv` rounds `acc * scale` in float32, half to even. That is used where every code starts at the same
    accumulator as in integers (`probq.export.float_rounding`), for all accumulators that the layer can reach.

    Args:
        node: the layer.
        requantize: the only reader of its output.
        x: its input.
        reached: its output.
    """
    if requantize is None or requantize.op != "requantize":
        return "no requantization of its own follows"
    if x.type != "uint8" and zero_point(x.low, x.high) is None:
        return "its input takes more than 8 bits"
    if stored(node.tensors["weight"], 0) is None:
        return "its weight takes more than 8 bits"
    found = numbers(requantize, node, len(reached.shape))
    if isinstance(found, str):
        return found
    lo, hi = requantize.attributes["lo"], requantize.attributes["hi"]
    if hi + max(-lo, 0) > 255 or hi < 0:
        return "its output takes more than 8 bits"
    ends = accumulators(node, Range(x.low, x.high))
    if any(abs(end) > INT32 for end in (*ends[0], *ends[1])):
        return "its accumulator takes more than 31 bits"
    low, high = (end.astype(np.int64) for end in ends)
    form = float_form(IntegerRounding(*found, lo, hi), low, high)
    if isinstance(form, str):
        return form
    bias = node.tensors["bias"] + form.add
    if (abs(bias) > INT32).any():
        return "its bias takes more than 31 bits"
    return FastForm(form.scale, bias, form.zero, form.offset, _limits(form, lo, hi, low, high))


def _limits(form: FloatForm, lo: int, hi: int, low: np.ndarray, high: np.ndarray) -> tuple[int | None, int | None]:
    """Return what codes plus zero must be clipped to, where neither uint8 nor the accumulators' range does it."""
    least, most = int(form.level(low).min(initial=hi)), int(form.level(high).max(initial=lo))
    below, above = lo + form.zero > 0 and least < lo, hi + form.zero < 255 and most > hi
    return lo + form.zero if below else None, hi + form.zero if above else None


def levels(graph: Graph, codes: Edge, node: Node) -> Edge:
    """Add what makes levels `start + step * code` of codes; nothing for most codebooks."""
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
    """Add a layer as a sum of 8-bit integer products, exact for any width: `x w = sum_jk x_j w_k 256^(j + k)`.

    A convolution whose sums stay within 24 bits is one of float32.

    Raises:
        ProbqError: one product's accumulator could leave 31 bits.
    """
    if node.op == "conv" and _in_float32(node, inputs[0]):
        return _float_convolution(graph, node, inputs[0], reached)
    terms = []
    for j, x in enumerate(_digits(graph, inputs[0])):
        for k, shaped in enumerate(_weight_digits(kernel(node), x)):
            most = int(np.abs(shaped.rows(node)).sum(1).max(initial=0)) * max(-x.low, x.high)
            if most > INT32:
                raise ProbqError(
                    f"a sum of its 8-bit products may reach {most:,}, the limit is {INT32:,} (31 bits); split the layer"
                )
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
        total = graph.node("Add", [total, parameter(graph, column, type, smallest(column))])
    return Edge(total, type, 0, reached.low, reached.high, reached.shape)


def _in_float32(node: Node, x: Edge) -> bool:
    """Return whether float32 holds every sum of a convolution's products and bias, in whatever order they are added.

    One of single pixels is the product of two matrices, which ONNX Runtime has for bytes.
    """
    if stored(node.tensors["weight"], 0) and node.attributes["groups"] == 1 and not _spatial(node.tensors["weight"]):
        return False
    bias = np.abs(node.tensors["bias"]).astype(object)
    rows = np.abs(kernel(node).rows(node)).astype(object).sum(1)
    return int((rows * max(-x.low, x.high) + bias).max(initial=0)) <= FLOAT32


def _spatial(weight: np.ndarray) -> bool:
    """Return whether a convolution's kernel has more than one element."""
    return any(size > 1 for size in weight.shape[2:])


def _float_convolution(graph: Graph, node: Node, x: Edge, reached: Range) -> Edge:
    """Add a convolution of integers that float32 holds.

    ONNX Runtime has none of integers that is as fast, and takes the channels of grouped ones one by one. The weight is
    stored as integers, which are converted when the file is loaded.
    """
    whole, shaped = graph.integers(x), kernel(node)
    whole = replace(whole, name=graph.cast(whole.name, "float32"), type="float32")
    parts = [(shaped.weight, shaped.packing), (node.tensors["bias"], smallest(node.tensors["bias"]))]
    stored = [graph.cast(parameter(graph, part, _narrowest(part), packing), "float32") for part, packing in parts]
    name = graph.node("Conv", [shaped.prepared(graph, whole), *stored], **shaped.attributes)
    return Edge(graph.cast(name, "int32"), "int32", 0, reached.low, reached.high, reached.shape)


def _narrowest(values: np.ndarray) -> str:
    """Return the narrowest signed type that holds integers of at most 31 bits."""
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    return next(type for type in ("int8", "int16", "int32") if np.iinfo(type).min <= low and high <= np.iinfo(type).max)


def _product(graph: Graph, op: str, shaped: Kernel, x: Edge) -> str:
    source = shaped.prepared(graph, x)
    if op == "linear":
        shaped = shaped.reshaped(np.transpose)
    weight, zero = weights(graph, shaped, x, unsigned=op == "conv")
    inputs = [source, weight, graph.constant(x.zero, "uint8"), zero]
    return graph.node("MatMulInteger" if op == "linear" else "ConvInteger", inputs, **shaped.attributes)


def weights(graph: Graph, shaped: Kernel, x: Edge, unsigned: bool = False) -> tuple[str, str]:
    """Return the names of a weight and of its zero point.

    They are unsigned for `ConvInteger`, which multiplies signed weights by unsigned inputs one by one.
    """
    how = stored(shaped.weight, 2**32 if unsigned else x.high + x.zero)
    if how is None:
        raise ProbqError("its weight takes more than 8 bits")
    type, zero = how
    return parameter(graph, shaped.weight, type, shaped.packing, zero), graph.constant(zero, type)


def stored(weight: np.ndarray, largest: int) -> tuple[str, int] | None:
    """Return the type and zero point of a weight of at most 8 bits: int8, or uint8 where int8 products could saturate.

    Args:
        weight: integers.
        largest: greatest uint8 that meets it.
    """
    low, high = (int(weight.min()), int(weight.max())) if weight.size else (0, 0)
    if low >= -128 and high <= 127 and 2 * largest * max(-low, high) <= SATURATED:
        return "int8", 0
    zero = zero_point(low, high)
    return None if zero is None else ("uint8", zero)


def octets(graph: Graph, x: Edge) -> Edge:
    """Return the input of a fast form as uint8."""
    octets = graph.octets(x)
    if octets is None:
        raise ProbqError("its input takes more than 8 bits")
    return octets


def _digits(graph: Graph, x: Edge) -> list[Edge]:
    """Return the value in digits of 8 bits, least first, `x = sum_j digit_j 256^j`.

    The zero point's digits are theirs.
    """
    octets = graph.octets(x)
    if octets is not None:
        return [octets]
    zero, largest = max(-x.low, 0), x.high - min(x.low, 0)
    type = integer_type(largest, zero, x.low)
    unsigned = "u" + type
    rest = graph.integers(x, type).name
    rest = graph.cast(graph.node("Add", [rest, graph.constant(zero, type)]), unsigned)
    found = []
    while largest or zero:
        above = graph.node("BitShift", [rest, graph.constant(8, unsigned)], direction="RIGHT")
        back = graph.node("BitShift", [above, graph.constant(8, unsigned)], direction="LEFT")
        digit = graph.cast(graph.node("Sub", [rest, back]), "uint8")
        found.append(Edge(digit, "uint8", zero & 255, -(zero & 255), 255 - (zero & 255), x.shape))
        rest, zero, largest = above, zero >> 8, largest >> 8
    return found


def _weight_digits(shaped: Kernel, x: Edge) -> list[Kernel]:
    """Return the weight in digits of 8 bits, least first; all but the last lie in -128 .. 127."""
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
