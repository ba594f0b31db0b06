"""On bit planes, codes of 1 or 2 bits are multiplied by `and` and summed by counting bits.

With `w = w0 + dw * u` and `x = x0 + dx * v` for codes u and v of 1 or 2 bits,

    sum w x = dw dx sum u v + w0 dx sum v + x0 sum w,    sum u v = sum_ab 2^(a + b) popcount(u_a & v_b).
"""

import math
from dataclasses import dataclass

import numpy as np

from probq.export.c.code.elementwise import elementwise
from probq.export.c.code.program import CSource
from probq.export.c.code.text import index, literal, loops
from probq.export.c.code.values import I32, MOST, U8, U64, Buffer, View
from probq.export.c.kernels.helper_text import COUNT, PACK, POPCOUNT
from probq.export.c.kernels.product import Product
from probq.export.c.kernels.vector_rows import has_vectors
from probq.export.c.kernels.weight_rows import one_codebook
from probq.integer.packing import bits_of, smallest

LEVELS = 4  # codes of up to two bits
FEWEST = 48  # products in a row
WASTE = 1.5  # words that rows are filled up to, of those needed


@dataclass(frozen=True)
class BitGrid:
    """A bit grid has the levels `first + step * code` of codes with some bits."""

    first: int
    step: int
    bits: int


def _x_grid(product: Product) -> BitGrid | None:
    (low, high), step = product.range.limits, product.range.step
    if (high - low) // step >= LEVELS:
        return None
    return BitGrid(low, step, max(1, ((high - low) // step).bit_length()))


def _w_grid(product: Product) -> BitGrid | None:
    weight, book = product.node.tensors["weight"], one_codebook(product.node)
    if not isinstance(book, range) or len(book) > LEVELS:
        book = smallest(weight).codebooks[0]
    if not isinstance(book, range) or len(book) > LEVELS:
        return None
    return BitGrid(book[0], book.step, max(1, bits_of(book)))


def _words(product: Product) -> tuple[int, int]:
    """Return the bytes of a window's element, and the 64-bit words of a window."""
    octets = -(-product.weight.shape[-1] // 8)
    return octets, -(-math.prod(product.kernel) * octets // 8)


def fits(p: CSource, product: Product) -> bool:
    """Return whether a layer can be computed on bit planes, and is worth it."""
    x, w = _x_grid(product), _w_grid(product)
    if x is None or w is None or product.groups != 1 or has_vectors(product.node):
        return False
    length = math.prod(product.weight.shape[1:])
    terms = (w.step * x.step * 9 * length, abs(w.first) * x.step * 3 * length, abs(x.first) * _largest_sum(product))
    worth = length >= FEWEST and _words(product)[1] * 64 <= WASTE * length
    return worth and sum(terms) + int(np.abs(product.node.tensors["bias"]).max()) <= MOST


def _largest_sum(product: Product) -> int:
    return int(np.abs(product.weight.reshape(product.outputs, -1).sum(1)).max())


def emit(p: CSource, product: Product) -> None:
    """Add the step of a layer on bit planes."""
    x, w = _x_grid(product), _w_grid(product)
    if x is None or w is None:
        raise ValueError("ask fits first")
    octets, words = _words(product)
    codes = _codes(p, product, x)
    pixel = product.x.size // product.x.shape[-1]
    buffers = {"y": product.y.buffer, "v": p.buffer(U64, x.bits * words), "sums": p.buffer(I32, product.outputs)}
    if product.sizes:
        buffers["planes"] = p.buffer(U8, x.bits * pixel * octets)
    lines = _gather(p, product, x.bits, octets, words, pixel) + _weigh(p, product, x, w, words)
    names, counts = (
        ([f"o{k}" for k in range(len(product.outs))], product.outs) if product.sizes else (["p"], (product.positions,))
    )
    head = _planes(p, product, x.bits, octets, pixel) if product.sizes else []
    head.append(f"{product.y.buffer.type.name} *to = y;")
    head += loops([("k", x.bits * words)], ["v[k] = 0;"])
    title = f"{product.node.name}: {product.node.op}, {w.bits} x {x.bits} bit planes"
    p.step(title, {"x": codes}, buffers, head + loops(zip(names, counts, strict=True), lines))


def _codes(p: CSource, product: Product, grid: BitGrid) -> Buffer:
    """Add a step that writes the input as codes in bytes, and return its buffer."""
    if grid.first == 0 and grid.step == 1 and product.x.buffer.type == U8:
        return product.x.buffer
    y = View(p.buffer(U8, product.x.size), product.x.shape, product.x.strides)
    shifted = f"(x - {literal(grid.first)})".replace("- -", "+ ") + (f" / {grid.step}" if grid.step > 1 else "")
    elementwise(
        p, f"{product.node.name}: codes", y, [product.x], [],
        lambda t, s, _: [f"{t} = (uint8_t)({shifted.replace('x', s[0], 1)});"],
    )  # fmt: skip
    return y.buffer


def _planes(p: CSource, product: Product, bits: int, octets: int, pixels: int) -> list[str]:
    """Return C lines that pack the codes of an image."""
    pack, channels = p.helper("pack", PACK), product.x.shape[-1]
    size = pixels * octets
    if channels == 8 * octets:
        return [f"{pack}(x, {pixels * channels}, {b}, planes + {b * size});" for b in range(bits)]
    each = [f"{pack}(x + i * {channels}, {channels}, {b}, planes + {b * size} + i * {octets});" for b in range(bits)]
    return loops([("i", pixels)], each)


def _gather(p: CSource, product: Product, bits: int, octets: int, words: int, pixels: int) -> list[str]:
    """Return C lines that put the bits of one window into the words `v`."""
    if not product.sizes:
        pack, n = p.helper("pack", PACK), product.x.shape[-1]
        return [f"{pack}(x + p * {n}, {n}, {b}, (uint8_t *)(v + {b * words}));" for b in range(bits)]
    channels, (length, starts) = product.x.shape[-1], product.runs()
    run = length // channels * octets
    names = [f"o{k}" for k in range(len(product.outs))]
    origin = index(names, [step // channels * octets for step in product.origin()])
    lines = [f"const uint8_t *from = planes + {origin};"]
    for b in range(bits):
        lines.append(f"uint8_t *to{b} = (uint8_t *)(v + {b * words});")
        for k, start in enumerate(starts):
            source = b * pixels * octets + start // channels * octets
            lines.append(f"memcpy(to{b} + {k * run}, from + {source}, {run});")
    return lines


def _weigh(p: CSource, product: Product, x: BitGrid, w: BitGrid, words: int) -> list[str]:
    """Return C lines from the words of a window to the stored outputs."""
    popcount = p.helper("popcount", POPCOUNT)
    count = p.helper("count", COUNT.replace("POPCOUNT", popcount))
    data = p.constant(_weight_planes(product, w, words), U8)
    lines = [f"{count}(v, {data}, {x.bits}, {w.bits}, {words}, {product.outputs}, sums);"]
    start = product.node.tensors["bias"] + x.first * product.weight.reshape(product.outputs, -1).sum(1)
    value = f"{w.step * x.step} * sums[o] + {p.constant(start, I32)}[o]".removeprefix("1 * ")
    if w.first:
        lines += ["int32_t total = 0;"]
        for b in range(x.bits):
            lines += loops([("k", words)], [f"total += {popcount}(v[k + {b * words}]) * {2**b};"])
        lines.append(f"total *= {literal(w.first * x.step)};")
        value = f"total + {value}"
    lines += loops([("o", product.outputs)], [f"const int32_t s = {value};", *product.tail.lines("s", "to[o]", "o")])
    return [*lines, f"to += {product.outputs};"]


def _weight_planes(product: Product, grid: BitGrid, words: int) -> np.ndarray:
    """Return the bits of the weights' codes in bytes, `[plane, word, output, 8]`."""
    codes = ((product.weight - grid.first) // grid.step).astype(np.uint8)
    planes = []
    for a in range(grid.bits):
        octets = np.packbits(codes >> a & 1, axis=-1, bitorder="little").reshape(product.outputs, -1)
        full = np.zeros((product.outputs, words * 8), np.uint8)
        full[:, : octets.shape[1]] = octets
        planes.append(full.reshape(product.outputs, words, 8).swapaxes(0, 1))
    return np.stack(planes)
