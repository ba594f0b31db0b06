"""The C exporter writes softmax and normalisation row by row, with sums and one division of 64 bits."""

import math

from probq.export.c.code.elementwise import cast, ordered
from probq.export.c.code.program import CSource
from probq.export.c.code.text import literal, loops
from probq.export.c.code.values import View
from probq.integer import Node
from probq.integer.normalisers.meaning import largest

# The root of a number below 2^62, bit by bit.
ROOT = """\
static inline int64_t NAME(int64_t v)
{
    int64_t root = 0, bit = INT64_C(1) << 60;
    while (bit > v) bit >>= 2;
    for (; bit > 0; bit >>= 2) {
        if (v >= root + bit) {
            v -= root + bit;
            root = (root >> 1) + bit;
        } else {
            root >>= 1;
        }
    }
    return root;
}
"""
# The highest bit of a positive number.
HIGHEST = """\
static inline int32_t NAME(int64_t v)
{
    int32_t bit = 0;
    while (v >> 1 >> bit > 0) bit++;
    return bit;
}
"""


def softmax(p: CSource, node: Node) -> View:
    """Compute `floor(2^bits e / s + 1/2)`."""
    kind, bits = p.ranges[node.name].type, node.attributes["bits"]
    look, sums = _exponentials(p, node)
    value = cast(kind, f"(e * {literal(2 << bits)} + s) / (2 * s)")
    return _rows(p, node, [*sums, *loops([("k", _count(p, node))], [*look, f"b[k] = {value};"])])


def log_softmax(p: CSource, node: Node) -> View:
    """Compute the difference to the maximum less the logarithm of the sum."""
    kind, size = p.ranges[node.name].type, len(node.tensors["logarithms"])
    _, sums = _exponentials(p, node)
    octaves, logarithms = (p.constant(node.tensors[name]) for name in ("octaves", "logarithms"))
    value = cast(kind, f"((int64_t)a[k] - most) * {literal(node.attributes['factor'])} - log")
    body = [
        *sums,
        f"const int32_t highest = {p.helper('highest', HIGHEST)}(s);",
        f"const int32_t mantissa = (int32_t)((s * {size} >> highest) - {size});",
        f"const int64_t log = (int64_t){octaves}[highest] + {logarithms}[mantissa];",
    ]
    return _rows(p, node, [*body, *loops([("k", _count(p, node))], [f"b[k] = {value};"])])


def normalise(p: CSource, node: Node) -> View:
    """Compute the quotient of each distance from the mean and the root, made positive by a multiple of the divisor."""
    kind, count, spec = p.ranges[node.name].type, _count(p, node), node.attributes
    limit, factor = largest(count, spec["bits"]), literal(2 ** (spec["bits"] + spec["root"] + 1))
    variance = f"{count} * squares - sum * sum" if spec["centred"] else f"{count} * squares"
    each = ["const int64_t t = a[k];", *["sum += t;"] * spec["centred"], "squares += t * t;"]
    distance = f"{count} * (int64_t)a[k]" + (" - sum" if spec["centred"] else "")
    body = [
        *["int64_t sum = 0;"] * spec["centred"],
        "int64_t squares = 0;",
        *loops([("k", count)], each),
        f"const int64_t variance = {variance};",
        f"const int64_t v = variance * {literal(4 ** spec['root'])} + {literal(spec['eps'])};",
        f"const int64_t r = {p.helper('root', ROOT)}(v);",
    ]
    quotient = [
        f"int64_t q = (({distance}) * {factor} + r * {literal(2 * limit + 1)}) / (2 * r) - {literal(limit)};",
        f"q = q < {literal(-limit)} ? {literal(-limit)} : q;",
        f"q = q > {literal(limit)} ? {literal(limit)} : q;",
        f"b[k] = {cast(kind, 'q')};",
    ]
    return _rows(p, node, [*body, *loops([("k", count)], quotient)])


def _count(p: CSource, node: Node) -> int:
    return int(p.ranges[node.name].low.shape[-1])


def _exponentials(p: CSource, node: Node) -> tuple[list[str], list[str]]:
    """Return lines for the exponential `e` of element k, and for the maximum and the sum `s` of a row."""
    coarse, fine = (p.constant(node.tensors[name]) for name in ("coarse", "fine"))
    last, size, count = len(node.tensors["coarse"]) - 1, len(node.tensors["fine"]), _count(p, node)
    dropped = node.attributes["dropped"]
    product = f"(int64_t){coarse}[d / {size} < {last} ? d / {size} : {last}] * {fine}[d % {size}]"
    e = f"({product} + {literal(1 << dropped >> 1)}) >> {dropped}"
    look = ["const int64_t d = most - a[k];", f"const int64_t e = {e};"]
    first = ["int64_t most = a[0];", *loops([("k", count)], ["most = a[k] > most ? a[k] : most;"])]
    return look, [*first, "int64_t s = 0;", *loops([("k", count)], [*look, "s += e;"])]


def _rows(p: CSource, node: Node, body: list[str]) -> View:
    """Add a step that computes row `b` of its value from row `a` of its input, both dense."""
    x = ordered(p, node.name, p.views[node.inputs[0]])
    shape, kind = x.shape, p.ranges[node.name].type
    y, count = p.view(kind, shape), shape[-1]
    rows = [
        f"const {x.buffer.type.name} *a = x + (ptrdiff_t)i * {count};",
        f"{kind.name} *b = y + (ptrdiff_t)i * {count};",
        *body,
    ]
    p.step(node.name, {"x": x.buffer}, {"y": y.buffer}, loops([("i", math.prod(shape[:-1]))], rows))
    return y
