"""These kernels work on bytes and words: dot products of rows, pairs for small kernels, one channel each."""

import numpy as np

from probq.export.c.code.program import LINE, CSource
from probq.export.c.code.text import indented, index, loops
from probq.export.c.code.values import I16, I32, Buffer
from probq.export.c.kernels.channel_text import channels as by_channel
from probq.export.c.kernels.dot_text import dots as dot_products
from probq.export.c.kernels.helper_text import PAIRS
from probq.export.c.kernels.product import Product, bias, in_tiles, widened, window_copies
from probq.export.c.kernels.vector_rows import rows
from probq.export.c.kernels.weight_rows import Rows

PATCHES = 2**16  # elements of windows copied at once
LONG = 3 * LINE  # elements from which copied windows begin on a line of the cache
BLOCK = 4  # windows that share a row of weights while it is in registers


def dots(p: CSource, product: Product) -> None:
    """Multiply each output's row of weights, unpacked once, with every window, copied beforehand into a row each."""
    node, groups = product.node, product.groups
    matrix = rows(p, node, lambda w: product.arrange(w).reshape(product.outputs, -1))
    count, pitch, tile = product.positions, matrix.length, product.positions
    buffers = {"y": product.y.buffer}
    if not matrix.direct:
        buffers["row"] = p.buffer(matrix.type, matrix.padded)
    fill: list[str] = []
    source = "x"
    if product.sizes and not product.is_flat:
        pitch = -(-pitch // LINE) * LINE if pitch >= LONG else pitch
        tile = min(count, max(1, PATCHES // pitch // BLOCK) * BLOCK)
        buffers["patch"] = p.buffer(product.x.buffer.type, tile * pitch)
        fill, source = window_copies(product, pitch), "patch"
    per_group = product.outputs // groups
    body = matrix.unpacked("o", "row", "w") + _blocks(p, product, source, matrix, pitch, tile)
    group = f"for (int32_t o = g * {per_group}; o < (g + 1) * {per_group}; o++) {{" if groups > 1 else (
        f"for (int32_t o = 0; o < {product.outputs}; o++) {{")  # fmt: skip
    lines = [*fill, group, *indented(body), "}"]
    if groups > 1:
        lines = loops([("g", groups)], lines)
    lines = in_tiles(lines, count, tile)
    p.step(f"{node.name}: {node.op}", {"x": product.x.buffer}, buffers, lines)


def _blocks(p: CSource, product: Product, source: str, matrix: Rows, pitch: int, tile: int) -> list[str]:
    """Return C lines for one output at `n` positions."""
    length = matrix.length
    start, kind = bias(p, product).at("o"), product.x.buffer.type
    helper = p.helper(f"dots_{kind.name}", dot_products(kind)) if kind.bits == 8 == matrix.type.bits else ""

    def block(count: int) -> list[str]:
        lines = [f"const {kind.name} *a = {source} + t * {pitch};"]
        lines.append(f"int32_t s[{count}] = {{{', '.join([start] * count)}}};")
        if helper:
            lines.append(f"{helper}(a, {pitch}, w, {length}, {count}, s);")
        else:
            products = [f"s[{j}] += (int32_t)a[k{f' + {j * pitch}' if j else ''}] * w[k];" for j in range(count)]
            lines += loops([("k", length)], products)
        for j in range(count):
            target = f"y[(p + t{f' + {j}' if j else ''}) * {product.outputs} + o]"
            lines += ["{", *indented(product.tail.lines(f"s[{j}]", target, "o")), "}"]
        return indented(lines)

    lines = ["int32_t t = 0;"]
    if tile >= BLOCK:
        lines += [f"for (; t + {BLOCK} <= n; t += {BLOCK}) {{", *block(BLOCK), "}"]
    return [*lines, "for (; t < n; t++) {", *block(1), "}"]


def pairs(p: CSource, product: Product) -> None:
    """Compute a small convolution: all weights are unpacked, and all outputs meet every window side by side."""
    run, starts = product.runs()
    outputs, wide, half = product.outputs, -(-product.outputs // 16) * 16, -(-run // 2)
    matrix = rows(p, product.node, lambda w: np.moveaxis(product.arrange(w), 0, -1).reshape(1, -1))
    start = np.zeros(wide, np.int64)
    start[:outputs] = product.node.tensors["bias"]
    first, at = p.constant(start, I32), p.constant(np.array(starts), I32)
    tile, sums = p.buffer(I16, len(starts) * half * wide * 2), p.buffer(I32, wide)
    image = widened(p, product)
    buffers = {"y": product.y.buffer, "tile": tile, "sums": sums}
    if not matrix.direct:
        buffers["row"] = p.buffer(matrix.type, matrix.padded)
    names = [f"o{k}" for k in range(len(product.outs))]
    place = f"((r * {half} + k / 2) * {wide} + o) * 2 + k % 2"
    inside = f"o < {outputs} && k < {run}"
    value = f"{inside} ? w[(r * {run} + k) * {outputs} + o] : 0"
    spread = loops([("r", len(starts)), ("k", 2 * half), ("o", wide)], [f"tile[{place}] = (int16_t)({value});"])
    body = loops([("o", wide)], [f"sums[o] = {first}[o];"])
    call = p.helper("pairs", PAIRS)
    body.append(f"{call}(x + {index(names, product.origin())}, {at}, {len(starts)}, {half}, tile, {wide}, sums);")
    body += _store(product)
    lines = [*matrix.unpacked("0", "row", "w"), *spread, f"{product.y.buffer.type.name} *to = y;"]
    p.step(
        f"{product.node.name}: conv, pairs", {"x": image}, buffers,
        lines + loops(zip(names, product.outs, strict=True), body),
    )  # fmt: skip


def _store(product: Product) -> list[str]:
    """Return C lines that store the sums of all outputs at one position."""
    lines = loops([("o", product.outputs)], product.tail.lines("sums[o]", "to[o]", "o"))
    return [*lines, f"to += {product.outputs};"]


def depthwise(p: CSource, product: Product) -> None:
    """Multiply every channel with a kernel of its own, all channels side by side."""
    channels, kind = product.outputs, product.x.buffer.type
    matrix = rows(p, product.node, lambda w: np.moveaxis(product.arrange(w), 0, -1).reshape(1, -1))
    _, starts = product.runs()
    taps, pairs = len(starts), -(-len(starts) // 2)
    in_pairs = kind.bits == 8 and np.abs(product.weight).max() < 2**15
    at = p.constant(np.array([*starts, *starts[-1:] * (2 * pairs - taps)]), I32)
    sums = p.buffer(I32, channels)
    buffers: dict[str, Buffer] = {"y": product.y.buffer, "sums": sums}
    if not matrix.direct:
        buffers["row"] = p.buffer(matrix.type, matrix.padded)
    lines = matrix.unpacked("0", "row", "w")
    names = [f"o{k}" for k in range(len(product.outs))]
    body = [f"const {kind.name} *from = x + {index(names, product.origin())};"]
    if in_pairs:
        buffers["tile"] = p.buffer(I16, 2 * pairs * channels)
        place = f"(r / 2 * {channels} + c) * 2 + r % 2"
        value = f"r < {taps} ? w[r * {channels} + c] : 0" if taps % 2 else f"w[r * {channels} + c]"
        lines += loops([("r", 2 * pairs), ("c", channels)], [f"tile[{place}] = (int16_t)({value});"])
        first, call = p.constant(product.node.tensors["bias"], I32), p.helper(f"channels_{kind.name}", by_channel(kind))
        body.append(f"{call}(from, {at}, {pairs}, {channels}, tile, {first}, sums);")
    else:
        body += loops([("c", channels)], [f"sums[c] = {bias(p, product).at('c')};"])
        body += loops(
            [("r", taps), ("c", channels)], [f"sums[c] += (int32_t)from[{at}[r] + c] * w[r * {channels} + c];"]
        )
    lines.append(f"{product.y.buffer.type.name} *to = y;")
    lines += loops(zip(names, product.outs, strict=True), body + _store(product))
    p.step(f"{product.node.name}: conv, depthwise", {"x": product.x.buffer}, buffers, lines)
