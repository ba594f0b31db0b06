"""The C exporter writes these operations element by element: arithmetic and windows.

Sums are held in 32 bits or more whatever they are made of: GCC 12 at -O3 compiles some sums in 8- or 16-bit memory
wrongly.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from probq.export.c.code.elementwise import broadcast, cast, elementwise, operand, order, ordered, rounding
from probq.export.c.code.program import CSource
from probq.export.c.code.text import index, literal, loops, nest
from probq.export.c.code.values import MOST, Type, View, dense
from probq.export.c.kernels.vector_rows import rows
from probq.integer import Node


def requantize(p: CSource, node: Node) -> View:
    """Compute `clip((x * multiplier + add) >> shift, lo, hi)`."""
    x, how = p.views[node.inputs[0]], rounding(p, node, p.ranges[node.inputs[0]])
    y = p.view(how.type, x.shape, order(x))
    elementwise(p, node.name, y, [x], how.operands, lambda t, s, c: how.lines(s[0], t, c))
    return y


def multiply(p: CSource, node: Node) -> View:
    """Compute `x * multiplier`."""
    x, factor = p.views[node.inputs[0]], node.tensors["multiplier"]
    y = p.view(p.ranges[node.name].type, x.shape, order(x))
    wide = "int64_t" if int(np.abs(factor).max()) > MOST else "int32_t"
    by = operand(p, factor, len(x.shape))
    elementwise(
        p, node.name, y, [x], [by], lambda t, s, c: [f"{t} = {cast(y.buffer.type, f'({wide}){s[0]} * {c[0]}')};"]
    )
    return y


def clip(p: CSource, node: Node) -> View:
    """Compute `min(max(x, lo), hi)`."""
    x = p.views[node.inputs[0]]
    y = p.view(p.ranges[node.name].type, x.shape, order(x))
    (low, high), (lo, hi) = p.ranges[node.inputs[0]].limits, (node.attributes["lo"], node.attributes["hi"])
    if (lo is not None and lo >= high) or (hi is not None and hi <= low):
        value = literal(int(p.ranges[node.name].low.min()))
        elementwise(p, node.name, y, [x], [], lambda t, s, _: [f"{t} = {value};"])
        return y

    def lines(target: str, sources: list[str], _: list[str]) -> list[str]:
        body = [f"int32_t t = {sources[0]};"]
        if lo is not None and low < lo:
            body.append(f"t = t < {literal(lo)} ? {literal(lo)} : t;")
        if hi is not None and high > hi:
            body.append(f"t = t > {literal(hi)} ? {literal(hi)} : t;")
        return [*body, f"{target} = {cast(y.buffer.type, 't')};"]

    elementwise(p, node.name, y, [x], [], lines)
    return y


def add(p: CSource, node: Node) -> View:
    """Compute the sum of two values; the one of fewer axes is repeated along the first axes of the other."""
    return _of_two(p, node, _signed("+"))


def product(p: CSource, node: Node) -> View:
    """Compute the product of two values, which broadcast like those of a sum."""
    return _of_two(p, node, _signed("*"))


def quotient(p: CSource, node: Node) -> View:
    """Compute the quotient of two values, in 64 bits; C rounds towards zero."""
    lo, hi = (literal(node.attributes[name]) for name in ("lo", "hi"))
    factors = literal(2 << node.attributes["up"]), literal(1 << node.attributes["down"])

    def body(target: str, sources: list[str], kind: Type) -> list[str]:
        return [
            f"const int64_t d = {sources[1]} == 0 ? 1 : {sources[1]};",
            f"const int64_t m = (d < 0 ? -d : d) * {factors[1]};",
            f"const int64_t n = (d < 0 ? -(int64_t){sources[0]} : {sources[0]}) * {factors[0]} + m;",
            "int64_t q = n / (2 * m);",
            "q -= n < q * (2 * m);",
            f"q = q < {lo} ? {lo} : q;",
            f"q = q > {hi} ? {hi} : q;",
            f"{target} = {cast(kind, 'q')};",
        ]

    return _of_two(p, node, body)


def _of_two(p: CSource, node: Node, body: Callable[[str, list[str], Type], list[str]]) -> View:
    """Add a step that computes elements of two values, by lines for a target and both sources."""
    xs = sorted((p.views[name] for name in node.inputs), key=lambda view: len(view.shape))
    shape = np.broadcast_shapes(*(x.shape for x in xs))
    xs = [broadcast(x, shape) for x in xs]
    full = max(xs, key=lambda x: (0 not in x.strides, x.size))
    y = p.view(p.ranges[node.name].type, shape, order(full))
    elementwise(p, node.name, y, xs, [], lambda t, s, _: body(t, s, y.buffer.type))
    return y


def _signed(sign: str) -> Callable[[str, list[str], Type], list[str]]:
    return lambda t, s, kind: [f"{t} = {cast(kind, f'(int32_t){s[0]} {sign} {s[1]}')};"]


def matmul(p: CSource, node: Node) -> View:
    """Compute matrix products over the last two axes, a row of the second matrix at a time."""
    xs, shape = [p.views[name] for name in node.inputs], p.ranges[node.name].low.shape
    y, lead = p.view(p.ranges[node.name].sum_type, shape), shape[:-2]
    outer = [broadcast(View(x.buffer, x.shape[:-2], x.strides[:-2], x.offset), lead).strides for x in xs]
    names, counts = [f"i{k}" for k in range(len(lead))], [*lead, shape[-2], xs[0].shape[-1], shape[-1]]
    target = index([*names, "row", "column"], y.strides)
    left = index([*names, "row", "k"], [*outer[0], *xs[0].strides[-2:]], xs[0].offset)
    right = index([*names, "k", "column"], [*outer[1], *xs[1].strides[-2:]], xs[1].offset)
    body = [f"y[{target}] += (int32_t)x0[{left}] * x1[{right}];"]
    lines = loops([("i", y.size)], ["y[i] = 0;"])
    lines += loops(zip([*names, "row", "k", "column"], counts, strict=True), body)
    p.step(node.name, {f"x{k}": x.buffer for k, x in enumerate(xs)}, {"y": y.buffer}, lines)
    return y


def total(p: CSource, node: Node) -> View:
    """Compute the sum over axes."""
    x, found = p.views[node.inputs[0]], p.ranges[node.name]
    axes = {axis % len(x.shape) for axis in node.attributes["axes"]}
    kept = [1 if k in axes else n for k, n in enumerate(x.shape)]
    y = p.view(found.sum_type, kept)
    into = View(y.buffer, x.shape, tuple(0 if k in axes else s for k, s in enumerate(y.strides)))
    _accumulate(p, node.name, x, into, y.size)
    return View(y.buffer, found.low.shape, dense(found.low.shape))


def _accumulate(p: CSource, title: str, x: View, y: View, size: int) -> None:
    axes = nest(x.shape, [x.strides, y.strides])
    names = [f"i{k}" for k in range(len(axes))]
    source, target = (index(names, [steps[k] for _, steps in axes], offset) for k, offset in enumerate((x.offset, 0)))
    zero = loops([("i", size)], ["y[i] = 0;"])
    body = [f"y[{target}] += {_short(f'x[{source}]', x.buffer.type, y.buffer.type)};"]
    p.step(title, {"x": x.buffer}, {"y": y.buffer}, zero + loops(zip(names, [n for n, _ in axes], strict=True), body))


def max_pool(p: CSource, node: Node) -> View:
    """Compute the maximum over windows, skipping padding."""
    kind = p.views[node.inputs[0]].buffer.type
    return _pool(p, node, kind, literal(kind.low), lambda x, y: f"{y} = {x} > {y} ? {x} : {y};")


def sum_pool(p: CSource, node: Node) -> View:
    """Compute the sum over windows."""
    source, kind = p.views[node.inputs[0]].buffer.type, p.ranges[node.name].sum_type
    return _pool(p, node, kind, "0", lambda x, y: f"{y} += {_short(x, source, kind)};")


def _short(x: str, source: Type, kind: Type) -> str:
    """Return a summand, which the sum's type is known to hold."""
    return cast(kind, x) if source.bits > kind.bits else x


def _pool(p: CSource, node: Node, kind: Type, first: str, join: Callable[[str, str], str]) -> View:
    x, spec, shape = p.views[node.inputs[0]], node.attributes, p.ranges[node.name].low.shape
    spatial = len(spec["kernel"])
    lead = len(shape) - spatial
    y = p.view(kind, shape, order(x))
    inner = nest(shape[:lead], [y.strides[:lead], x.strides[:lead]])
    names = [f"c{k}" for k in range(len(inner))]
    outs, taps, ins = ([f"{letter}{k}" for k in range(spatial)] for letter in "oki")
    place = index([*outs, *names], [*y.strides[lead:], *(steps[0] for _, steps in inner)])
    source = index([*ins, *names], [*x.strides[lead:], *(steps[1] for _, steps in inner)], x.offset)
    channels = list(zip(names, [n for n, _ in inner], strict=True))
    body = loops(channels, [join(f"x[{source}]", f"y[{place}]")])
    lines = loops(channels, [f"y[{place}] = {first};"]) + _windows(spec, x.shape[lead:], shape[lead:], taps, body)
    p.step(node.name, {"x": x.buffer}, {"y": y.buffer}, loops(zip(outs, shape[lead:], strict=True), lines))
    return y


def _windows(
    spec: Mapping[str, Any], sizes: Sequence[int], outs: Sequence[int], taps: Sequence[str], body: list[str]
) -> list[str]:
    """Return loops over the elements of a window that lie inside the input, as `i0, i1, ...`."""
    dilations, pads = spec.get("dilation") or [1] * len(sizes), spec["padding"]
    for k in reversed(range(len(sizes))):
        kernel, stride, low, dilation = spec["kernel"][k], spec["stride"][k], pads[k][0], dilations[k]
        last = (outs[k] - 1) * stride - low + (kernel - 1) * dilation
        guard = [f"if (i{k} < 0) continue;"] * (low > 0) + [f"if (i{k} >= {sizes[k]}) continue;"] * (last >= sizes[k])
        place = f"const int32_t i{k} = {index([f'o{k}', taps[k]], [stride, dilation], -low)};".replace("+ -", "- ")
        body = loops([(taps[k], kernel)], [place, *guard, *body])
    return body


def embedding(p: CSource, node: Node) -> View:
    """Look up the rows of a table."""
    x = ordered(p, node.name, p.views[node.inputs[0]])
    matrix = rows(p, node, lambda w: w)
    y = p.view(matrix.type, p.ranges[node.name].low.shape)
    body = matrix.unpacked("x[i]", "row", "w")
    copy = loops([("k", matrix.length)], [f"y[i * {matrix.length} + k] = w[k];"])
    inputs = {"x": x.buffer}
    scratch = {} if matrix.direct else {"row": p.buffer(matrix.type, matrix.padded)}
    p.step(node.name, inputs, {"y": y.buffer} | scratch, loops([("i", max(1, math.prod(x.shape)))], body + copy))
    return y
