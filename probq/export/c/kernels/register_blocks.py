"""In blocks, eight windows meet sixteen outputs at once; weights lie in the order in which they are read.

That order is `[16 outputs][4 neighbours in the window][output][neighbour]`. Weights of 8 bits are read as they are
stored, narrower ones are unpacked for sixteen outputs at a time.
"""

import numpy as np

from probq.export.c.code.program import CSource
from probq.export.c.code.text import indented, index, loops
from probq.export.c.code.values import I8, I32, U8, Buffer, Type
from probq.export.c.kernels.block_text import NEIGHBOURS, OUTPUTS, WINDOWS, block, widen
from probq.export.c.kernels.code_parts import packed, unpacked
from probq.export.c.kernels.product import Product, in_tiles, window_copies
from probq.export.c.kernels.vector_rows import has_vectors
from probq.export.c.kernels.weight_rows import one_codebook
from probq.integer.packing import Levels, bits_of, smallest

PATCHES = 2**16  # bytes of windows copied at once
WASTE = 1.5  # outputs that blocks are filled up to, of those there are


def fits(product: Product) -> bool:
    """Return whether a layer can be computed in blocks, and is worth it."""
    if product.x.buffer.type.bits != 8 or product.groups > 1 or has_vectors(product.node):
        return False
    outputs = product.outputs
    many = product.positions >= NEIGHBOURS and -(-outputs // OUTPUTS) * OUTPUTS <= WASTE * outputs
    return many and _book(product) is not None


def _book(product: Product) -> Levels | None:
    """Return a codebook of all weights in which a byte holds every level, if there is one."""
    book = one_codebook(product.node)
    if book is None:
        return None
    for each in (book, smallest(product.node.tensors["weight"]).codebooks[0]):
        if each[0] >= I8.low and each[-1] <= I8.high and bits_of(each):
            return each
    return None


def emit(p: CSource, product: Product) -> None:
    """Add the step of a layer in blocks."""
    kind, (run, starts) = product.x.buffer.type, product.runs()
    length = run * len(starts)
    pitch, count = -(-length // NEIGHBOURS) * NEIGHBOURS, product.positions
    fill: list[str] = []
    buffers: dict[str, Buffer] = {"y": product.y.buffer, "sums": p.buffer(I32, WINDOWS * OUTPUTS)}
    places = np.concatenate([start + np.arange(0, run, NEIGHBOURS) for start in starts])
    tile = count
    if run % NEIGHBOURS:
        tile = min(count, max(1, PATCHES // pitch // WINDOWS) * WINDOWS)
        buffers["patch"] = p.buffer(kind, tile * pitch)
        fill, places = window_copies(product, pitch, pitch - length), np.arange(0, pitch, NEIGHBOURS)
    weights = [*_weights(p, product, pitch, buffers), *_widened(p, kind, OUTPUTS * pitch)]
    text = block(kind, f"{p.name.upper()}_STEP", _wide(p))
    name, at = p.helper(f"block_{kind.name}", text), p.constant(places, I32)
    call = f"{name}(at, {at}, {len(places)}, w, bias, sums);"
    windows = _windows(product, pitch, bool(fill))
    lines = [*fill]
    first = p.constant(np.pad(product.node.tensors["bias"], (0, -product.outputs % OUTPUTS), "edge"), I32)
    whole, rest = divmod(product.outputs, OUTPUTS)
    for begin, blocks, outputs in ((0, whole, OUTPUTS), (whole, 1, rest)):
        if not blocks or not outputs:
            continue
        body = [f"const int32_t first = b * {OUTPUTS};", f"const int32_t *bias = {first} + first;", *weights]
        body += ["for (int32_t t = 0; t < n; t += 8) {", *indented([*windows, call, *_store(product, outputs)]), "}"]
        head = f"for (int32_t b = {begin}; b < {begin + blocks}; b++) {{"
        lines += [head, *indented(body), "}"]
    lines = in_tiles(lines, count, tile)
    p.step(f"{product.node.name}: {product.node.op}, blocks", {"x": product.x.buffer}, buffers, lines)


def _weights(p: CSource, product: Product, pitch: int, buffers: dict[str, Buffer]) -> list[str]:
    """Return C lines after which `w` points at the weights of block `b`."""
    book = _book(product)
    assert book is not None
    rows = product.weight.reshape(product.outputs, -1)
    # What is beyond the last output repeats it, and what is beyond the window meets zeros.
    rows = np.pad(rows, ((0, -len(rows) % OUTPUTS), (0, 0)), "edge")
    rows = np.pad(rows, ((0, 0), (0, pitch - rows.shape[1])), "edge")
    blocks = rows.reshape(-1, OUTPUTS, pitch // NEIGHBOURS, NEIGHBOURS).swapaxes(1, 2).reshape(-1, OUTPUTS * pitch)
    bits, size = bits_of(book), OUTPUTS * pitch
    if bits == 8:
        return [f"const int8_t *w = {p.constant(blocks, I8)} + b * {size};"]
    codes = np.searchsorted(np.array(book), blocks)
    data = p.constant(np.stack([packed(each, bits) for each in codes]), U8)
    table = "" if isinstance(book, range) else p.constant(np.array(book), I8)
    buffers["row"] = p.buffer(I8, size)
    return [*unpacked(f"{data} + b * {size * bits // 8}", "row", size, bits, book, table), "const int8_t *w = row;"]


def _wide(p: CSource) -> str:
    """Return the name of the array that takes weights in 16 bits, on processors that multiply them so."""
    return f"{p.name}_wide"


def _widened(p: CSource, kind: Type, size: int) -> list[str]:
    """Return C lines that fill that array."""
    p.wide = max(p.wide, size)
    return [f"{p.helper(f'widen_{kind.name}', widen(kind, _wide(p)))}(w, {size});"]


def _windows(product: Product, pitch: int, copied: bool) -> list[str]:
    """Return C lines after which `at` holds the places of eight windows from `t` on, the last one repeated."""
    place = f"k * {pitch}"
    lines = ["const int32_t k = t + j < n ? t + j : n - 1;"]
    if not copied:
        lines = ["const int32_t k = p + (t + j < n ? t + j : n - 1);"]
    if not copied and product.sizes and not product.is_flat:
        names, left = [], product.positions
        for axis, n in enumerate(product.outs):
            left //= n
            names.append(f"o{axis}")
            lines.append(f"const int32_t o{axis} = k / {left}" + (f" % {n};" if axis else ";"))
        place = index(names, product.origin())
    lines.append(f"at[j] = {'patch' if copied else 'x'} + {place};")
    return [f"const {product.x.buffer.type.name} *at[8];", *loops([("j", WINDOWS)], lines)]


def _store(product: Product, outputs: int) -> list[str]:
    """Return C lines that store the sums of a block."""
    lines = product.tail.lines(f"sums[j * {OUTPUTS} + i]", "to[i]", "first + i")
    body = [f"{product.y.buffer.type.name} *to = y + (p + t + j) * {product.outputs} + first;"]
    body += loops([("i", outputs)], lines)
    return ["for (int32_t j = 0; j < 8 && t + j < n; j++) {", *indented(body), "}"]
