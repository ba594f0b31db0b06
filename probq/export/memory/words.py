"""Integers are written as lines of hexadecimal words, as Verilog's `$readmemh` reads them.

A line is one word; it holds its elements in two's complement (or unsigned) at one width, the first element in the
least significant bits.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probq.utils.errors import ProbqError


@dataclass(frozen=True)
class Words:
    """This says how one file holds an integer tensor.

    Attributes:
        file: its name in the folder.
        shape: the shape of the tensor.
        lines: words; the tensor's elements in C order are spread evenly over them.
        bits: the bits of one element.
        signed: two's complement, or unsigned.
    """

    file: str
    shape: list[int]
    lines: int
    bits: int
    signed: bool


def width_of(low: int, high: int) -> tuple[int, bool]:
    """Return the bits and signedness of the narrowest word that holds `low .. high`.

    >>> width_of(-3, 8), width_of(0, 15), width_of(0, 0)
    ((5, True), (4, False), (1, False))
    """
    if low >= 0:
        return max(high.bit_length(), 1), False
    return max((-low - 1).bit_length(), max(high, 0).bit_length()) + 1, True


def write_words(folder: Path, file: str, tensor: np.ndarray, lines: int, span: tuple[int, int] | None = None) -> Any:
    """Write a tensor and return its entry in the index, JSON-able.

    Args:
        folder: where.
        file: its name.
        tensor: integers.
        lines: how many words; their elements are consecutive in C order.
        span: least and greatest integer to make room for; by default those of the tensor.
    """
    ends = (int(tensor.min()), int(tensor.max())) if tensor.size else (0, 0)
    bits, signed = width_of(*(span or ends))
    rows = tensor.reshape(lines, -1)
    digits = max(1, -(-bits * rows.shape[1] // 4))
    text = "".join(f"{_word(row, bits):0{digits}x}\n" for row in rows)
    (folder / file).write_text(text, encoding="ascii")
    return asdict(Words(file, list(tensor.shape), lines, bits, signed))


def _word(row: np.ndarray, bits: int) -> int:
    """Return the elements as one integer, the first in the least significant bits."""
    octets = np.ascontiguousarray(row, "<i8").view(np.uint8).reshape(-1, 8)
    elements = np.unpackbits(octets, axis=1, bitorder="little", count=bits)
    return int.from_bytes(np.packbits(elements, bitorder="little").tobytes(), "little")


def read_words(folder: Path, entry: dict[str, Any]) -> np.ndarray:
    """Return the tensor of an entry in the index, int64.

    Raises:
        ProbqError: the file is missing, or is not what the entry says.
    """
    try:
        words = Words(**entry)
        if not _sane(words):
            raise ValueError("its sizes are no sizes of a tensor of 64-bit integers")
        lines = (folder / Path(words.file).name).read_text(encoding="ascii").split()
        numbers = [int(line, 16) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise ProbqError(f"cannot read the words of {entry!s:.80}: {error!s:.200}") from error
    elements = math.prod(words.shape) // max(1, words.lines)
    size = words.bits * elements
    # the digits are counted first: what is made of a file stays in proportion to it
    right = len(lines) == words.lines and all(len(line) == max(1, -(-size // 4)) for line in lines)
    if not right or any(number < 0 or number >> size for number in numbers):
        raise ProbqError(f"{words.file:.80} does not hold {words.lines} words of {elements} x {words.bits} bits")
    octets = b"".join(number.to_bytes(-(-size // 8), "little") for number in numbers)
    rows = np.frombuffer(octets, np.uint8).reshape(words.lines, -1)
    bits = np.unpackbits(rows, axis=1, bitorder="little", count=size).reshape(words.lines, elements, words.bits)
    weights = 2 ** np.arange(words.bits, dtype=np.int64)
    if words.signed:
        weights[-1] *= -1
    return (bits @ weights).reshape(words.shape)


def _sane(words: Words) -> bool:
    """Return whether an entry's parts are of the right kind and agree."""
    sizes = (*words.shape, words.lines, words.bits)
    if type(words.signed) is not bool or not all(type(size) is int and 0 <= size < 2**31 for size in sizes):
        return False
    elements = math.prod(words.shape)
    return 1 <= words.bits <= 63 + words.signed and elements == words.lines * (elements // max(1, words.lines))
