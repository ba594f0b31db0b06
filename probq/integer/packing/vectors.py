"""Integer tensors of vectors are codes, each of which chooses several neighbouring integers from a table."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from probq.integer.packing.scalars import Packing, bits_of, pack, size_in_bits, unpack
from probq.utils.errors import ProbqError

MOST_TABLE = 2**24  # integers in the tables of one tensor
ENTRY = (2, 8)  # least and greatest width of an entry in bits


@dataclass(frozen=True, eq=False)
class VectorPacking:
    """A vector packing says how an integer tensor is stored: `values[t d : (t + 1) d] = table[t mod T][code_t]`.

    The values are those of the whole tensor one behind the other, and its rows, along the first axis, have a multiple
    of `T d` of them, or one of `d` where there is one table.

    Args:
        table: `T` tables of `K` vectors of `d` integers, `[T, K, d]`.
        bits: width of the integers in the table, which lie in `-(2^(bits - 1) - 1) .. 2^(bits - 1) - 1`.

    Raises:
        ProbqError: the table is not one of such integers.

    >>> packing = VectorPacking(np.array([[[0, 0], [3, -1], [1, 1]]]), 4)
    >>> packing.codes(np.array([[3, -1, 0, 0]]))
    array([1, 0])
    """

    table: np.ndarray
    bits: int

    def __post_init__(self) -> None:
        table = np.asarray(self.table)
        if table.ndim != 3 or table.dtype.kind not in "iu" or not 0 < table.size <= MOST_TABLE:
            raise ProbqError("a table of vectors has integers on three axes: tables, vectors, and their entries")
        if type(self.bits) is not int or not ENTRY[0] <= self.bits <= ENTRY[1]:
            raise ProbqError(f"entries of vectors take {ENTRY[0]} to {ENTRY[1]} bits, not {self.bits!r:.80}")
        object.__setattr__(self, "table", table.astype(np.int64, copy=False))
        if np.abs(self.table).max() >= 2 ** (self.bits - 1):
            raise ProbqError(f"an entry of a vector does not fit {self.bits} bits")

    @property
    def size(self) -> int:
        """Return the integers of one vector."""
        return self.table.shape[2]

    @property
    def of_codes(self) -> Packing:
        """Return how the codes are stored."""
        return Packing((range(self.table.shape[1]),), np.array(0))

    @property
    def of_table(self) -> Packing:
        """Return how the table is stored."""
        largest = 2 ** (self.bits - 1) - 1
        return Packing((range(-largest, largest + 1),), np.array(0))

    @property
    def bits_per_value(self) -> float:
        """Return the bits that a value's share of a code takes, the table left out."""
        return bits_of(range(self.table.shape[1])) / self.size

    def codes(self, values: np.ndarray) -> np.ndarray:
        """Return the code of each vector of a tensor, int64 `[vectors]`, the first one where a table has it twice.

        Raises:
            ProbqError: there is no such vector in the table, or the shape does not fit.
        """
        number_of_codes(values.shape, self)
        parts = np.asarray(values, np.int64).reshape(-1, len(self.table), self.size)
        found = np.empty(parts.shape[:2], np.int64)
        for k, table in enumerate(self.table):
            known = {vector.tobytes(): code for code, vector in reversed(list(enumerate(table)))}
            try:
                found[:, k] = [known[vector.tobytes()] for vector in np.ascontiguousarray(parts[:, k])]
            except KeyError:
                raise ProbqError("a vector of the tensor is not in its table; take its values from the table") from None
        return found.reshape(-1)

    def values(self, codes: np.ndarray) -> np.ndarray:
        """Return the integers of codes `[vectors]`, int64 `[vectors d]`."""
        tables = np.arange(codes.size) % len(self.table)
        return self.table[tables, codes].reshape(-1)


AnyPacking = Packing | VectorPacking


def number_of_codes(shape: tuple[int, ...], packing: VectorPacking) -> int:
    """Return the number of vectors of a tensor.

    Raises:
        ProbqError: vectors do not fill its rows.
    """
    elements, row = math.prod(shape), math.prod(shape[1:])
    fits = row % packing.size == 0 and (len(packing.table) in (1, row // packing.size))
    if len(shape) < 2 or not fits:
        raise ProbqError(
            f"{len(packing.table)} tables of vectors of {packing.size} do not fill rows of {row} in a tensor of shape "
            f"{tuple(shape)}"
        )
    return elements // packing.size


def stored_bits(shape: tuple[int, ...], packing: AnyPacking) -> int:
    """Return the bits that a tensor of this shape takes: its codes, and its table if it has one.

    >>> stored_bits((2, 4), VectorPacking(np.array([[[0, 0], [3, -1]]]), 4))
    20

    Raises:
        ProbqError: the packing does not fit the shape.
    """
    if isinstance(packing, Packing):
        return size_in_bits(shape, packing)
    return size_in_bits((number_of_codes(shape, packing),), packing.of_codes) + packing.table.size * packing.bits


def pack_codes(values: Any, packing: VectorPacking) -> np.ndarray:
    """Return the codes of a tensor as bytes, each at its own width, least significant bit first."""
    return pack(packing.codes(np.asarray(values)), packing.of_codes)


def unpack_codes(blob: Any, shape: tuple[int, ...], packing: VectorPacking) -> np.ndarray:
    """Return the integers that `pack_codes` wrote, int64 of the given shape.

    Raises:
        ProbqError: as `unpack`, or the shape does not fit.
    """
    codes = unpack(blob, (number_of_codes(shape, packing),), packing.of_codes)
    return packing.values(codes).reshape(shape)
