"""Codes that C unpacks by the thousand are stored in parts: as many bits of each in a byte as a power of two.

A width is the sum of the powers of two in it: codes of 6 bits are stored as their lower 4 and their upper 2 bits. A
part of `c` bits has `8 / c` codes in a byte, `n c / 8` places from each other, so that one shift and one mask unpack
neighbours from neighbours. The size is that of packed codes.
"""

from collections.abc import Iterator

import numpy as np

from probq.export.c.code.text import literal, loops
from probq.integer.packing import Levels


def _parts(bits: int) -> Iterator[tuple[int, int]]:
    """Yield the width of each part and the bits below it."""
    below = 0
    for width in (4, 2, 1):
        if bits & width:
            yield width, below
            below += width


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return codes of 1 to 7 bits in bytes.

    >>> packed(np.array([1, 0, 1, 1, 0, 0, 0, 1]), 1), packed(np.array([1, 2, 3, 4, 5, 6, 7, 8]), 4)
    (array([141], dtype=uint8), array([ 81,  98, 115, 132], dtype=uint8))

    Args:
        codes: integers, as many as a multiple of eight.
        bits: of a code.
    """
    found = []
    for width, below in _parts(bits):
        part = (codes >> below & 2**width - 1).reshape(8 // width, -1)
        found.append(sum(each << width * k for k, each in enumerate(part)))
    return np.concatenate(found).astype(np.uint8)


def unpacked(source: str, to: str, count: int, bits: int, book: Levels, table: str = "") -> list[str]:
    """Return C lines that unpack codes to the levels they stand for, which fit `int8_t`.

    Args:
        source: C expression of the first byte.
        to: C name of the place for the levels.
        count: the number of codes, a multiple of eight.
        bits: of a code.
        book: the levels.
        table: C name of an array of them, where they are not equally spaced.
    """
    parts = list(_parts(bits))
    lines = [f"const uint8_t *from = {source};"]
    for number, (width, below) in enumerate(parts):
        size = count * width // 8
        body = ["const uint32_t byte = from[j];"]
        for k in range(8 // width):
            place = f"{to}[j + {k * size}]" if k else f"{to}[j]"
            code = f"(byte >> {k * width} & {2**width - 1}u)" if k else f"(byte & {2**width - 1}u)"
            code = f"(int32_t){code}" + (f" * {2**below}" if below else "")
            value = _level(code, book, table) if len(parts) == 1 else f"{place} + {code}" if number else code
            body.append(f"{place} = (int8_t)({value});")
        lines += loops([("j", size)], body)
        if number + 1 < len(parts):
            lines.append(f"from += {size};")
    if len(parts) > 1:
        lines += loops([("j", count)], [f"{to}[j] = (int8_t)({_level(f'{to}[j]', book, table)});"])
    return lines


def _level(code: str, book: Levels, table: str) -> str:
    """Return the C expression of a code's level."""
    if table:
        return f"{table}[{code}]"
    assert isinstance(book, range)
    product = code if book.step == 1 else f"{code} * {book.step}"
    return f"{product} + {literal(book[0])}".replace("+ -", "- ") if book[0] else product
