"""Weights are stored in C as rows of codes packed at their own width, with the C that unpacks a row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from probq.export.c.code.program import CSource
from probq.export.c.code.text import INDENT, literal
from probq.export.c.code.values import I8, I16, I32, MOST, U8, Type, narrowest
from probq.integer import Node
from probq.integer.packing import Levels, Packing, VectorPacking, bits_of, pack, smallest

WEIGHTS = (I8, I16, I32)
WIDEST = 24  # bits of a code that four bytes hold wherever it begins


@dataclass(frozen=True)
class Rows:
    """A matrix in C has rows of packed codes, or of plain integers where their width is one of C's.

    Attributes:
        name: the name of the constant array.
        type: the type of the unpacked integers.
        length: integers in a row.
        direct: whether rows need no unpacking.
        calls: C lines that unpack row `ROW` into `INTO`.
    """

    name: str
    type: Type
    length: int
    direct: bool
    calls: tuple[str, ...] = ()

    @property
    def padded(self) -> int:
        """Return the number of elements that unpacking writes, in whole groups of eight codes."""
        return -(-self.length // 8) * 8

    def unpacked(self, row: str, into: str, variable: str) -> list[str]:
        """Return C lines after which the variable points at the integers of a row."""
        if self.direct:
            return [f"const {self.type.name} *{variable} = {self.name} + ({row}) * {self.length};"]
        lines = [line.replace("ROW", f"({row})").replace("INTO", into) for line in self.calls]
        return [*lines, f"const {self.type.name} *{variable} = {into};"]


def rows(p: CSource, node: Node, arrange: Callable[[np.ndarray], np.ndarray]) -> Rows:
    """Return the weight of a node as the matrix that `arrange` makes of it, a row at a time in its own codebook."""
    weight, packing = node.tensors["weight"], node.packing_of("weight")
    assert isinstance(packing, Packing)
    matrix = arrange(weight)
    books = _books(matrix, packing, arrange(np.broadcast_to(packing.rung, weight.shape)))
    book = books[0]
    if any(each != book for each in books):
        return _mixed(p, matrix, [_regular(each, row) for each, row in zip(books, matrix, strict=True)])
    if isinstance(book, tuple) and bits_of(book) <= 8:
        return _packed(p, matrix, book)
    return _packed(p, matrix, _regular(book, matrix))


def packed(p: CSource, matrix: np.ndarray) -> Rows:
    """Return a matrix of integers in the smallest codebook that has them all."""
    return _packed(p, matrix, smallest(matrix).codebooks[0])


def _books(matrix: np.ndarray, packing: Packing, rung: np.ndarray) -> list[Levels]:
    same = (rung == rung[:, :1]).all(1)
    return [
        packing.codebooks[int(r[0])] if plain else smallest(row).codebooks[0]
        for r, plain, row in zip(rung, same, matrix, strict=True)
    ]


def _regular(book: Levels, values: np.ndarray) -> range:
    """Return the codebook if it is equally spaced and all its codes give 32-bit integers, else the smallest that is."""
    if isinstance(book, range) and book[0] >= -MOST and book[0] + book.step * (2 ** bits_of(book) - 1) <= MOST:
        return book
    found = smallest(values).codebooks[0]
    return range(found[0], found[-1] + 1)


def _packed(p: CSource, matrix: np.ndarray, book: Levels) -> Rows:
    bits, length = bits_of(book), matrix.shape[1]
    kind = narrowest(int(matrix.min()), int(matrix.max()), WEIGHTS)
    if (bits == kind.bits and book[-1] - book[0] == len(book) - 1) or bits > WIDEST:
        return Rows(p.constant(matrix, kind), kind, length, True)
    blob = np.stack([pack(row, Packing((book,), np.array(0))) for row in matrix])
    name = p.constant(np.concatenate([blob.reshape(-1), np.zeros(bits + 1, np.uint8)]), U8)
    if isinstance(book, tuple):
        table = p.constant(np.array([*book, *[book[0]] * (2**bits - len(book))]))
        kind = narrowest(book[0], book[-1], WEIGHTS)
        call = _unpacker(p, bits, kind, table)
        return Rows(name, kind, length, False, (f"{call}({name} + ROW * {blob.shape[1]}, INTO, {-(-length // 8)});",))
    kind = narrowest(book[0], book[0] + book.step * (2**bits - 1), WEIGHTS)
    levels = f"{literal(book[0])}, {literal(book.step)}"
    call = f"{_unpacker(p, bits, kind)}({name} + ROW * {blob.shape[1]}, INTO, {-(-length // 8)}, {levels});"
    return Rows(name, kind, length, False, (call,))


def _mixed(p: CSource, matrix: np.ndarray, books: list[range]) -> Rows:
    widths = np.array([bits_of(book) for book in books])
    length = matrix.shape[1]
    if widths.max() > WIDEST:
        kind = narrowest(int(matrix.min()), int(matrix.max()), WEIGHTS)
        return Rows(p.constant(matrix, kind), kind, length, True)
    blobs = [pack(row, Packing((book,), np.array(0))) for row, book in zip(matrix, books, strict=True)]
    offsets = np.cumsum([0, *map(len, blobs)])[:-1]
    name = p.constant(np.concatenate([*blobs, np.zeros(int(widths.max()) + 1, np.uint8)]), U8)
    ends = [book[0] + book.step * (2 ** bits_of(book) - 1) for book in books]
    kind = narrowest(min(book[0] for book in books), max(ends), WEIGHTS)
    at, start, step, width = (
        p.constant(np.array(column))
        for column in (offsets, [book[0] for book in books], [book.step for book in books], widths)
    )
    lines = [f"switch ({width}[ROW]) {{"]
    for bits in sorted(set(widths.tolist())):
        call = f"{_unpacker(p, bits, kind)}({name} + {at}[ROW], INTO, {-(-length // 8)}, {start}[ROW], {step}[ROW])"
        lines.append(f"{INDENT}case {bits}: {call}; break;")
    return Rows(name, kind, length, False, (*lines, "default: break;", "}"))


def _unpacker(p: CSource, bits: int, kind: Type, table: str = "") -> str:
    """Return the name of the function that unpacks groups of eight codes of some bits."""
    lines = []
    for j in range(8):
        first, shift = divmod(bits * j, 8)
        octets = [
            f"(uint32_t)from[{first + k}]" + (f" << {8 * k}" if k else "") for k in range(-(-(shift + bits) // 8))
        ]
        code = f"(({' | '.join(octets)}) >> {shift} & {2**bits - 1}u)" if bits else "0"
        value = f"{table}[{code}]" if table else f"start + step * (int32_t){code}"
        lines.append(f"{INDENT * 2}to[{j}] = ({kind.name})({value});")
    levels = "" if table else ", int32_t start, int32_t step"
    unused = "" if bits else f"{INDENT}(void)from;\n" + (f"{INDENT}(void)step;\n" if not table else "")
    text = (
        f"static inline void NAME(const uint8_t *restrict from, {kind.name} *restrict to, int32_t groups{levels})\n{{\n"
        f"{unused}{INDENT}for (int32_t g = 0; g < groups; g++, from += {bits}, to += 8) {{\n"
        + "\n".join(lines)
        + f"\n{INDENT}}}\n}}\n"
    )
    suffix = f"_{table.rpartition('_')[2]}" if table else ""
    return p.helper(f"unpack{bits}_{kind.name}{suffix}", text)


def one_codebook(node: Node) -> Levels | None:
    """Return the codebook of all weights, or None where they have several, or are vectors."""
    packing: Any = node.packing_of("weight")
    if isinstance(packing, VectorPacking):
        return None
    used = np.unique(packing.rung)
    return packing.codebooks[int(used[0])] if used.size == 1 else None
