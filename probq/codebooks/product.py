"""A product codebook has a table of vectors for each part of the rows of a weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from probq.codebooks.codebook import Codebook
from probq.codebooks.vector import MOST_VECTORS, UNFITTED, WIDEST_ENTRY, VectorCodebook, check_whole
from probq.utils.errors import ProbqError


@dataclass(frozen=True)
class ProductCodebook(Codebook):
    """A product codebook becomes a `VectorCodebook` of `parts` tables once the length of a row is known.

    Args:
        count: number `K` of vectors in each table, 2 to 65536.
        parts: number of parts of a row.
        entry_bits: width of the entries in bits, 2 to 8.

    Raises:
        ProbqError: if a number is out of its range.
    """

    count: int
    parts: int
    entry_bits: int = WIDEST_ENTRY

    def __post_init__(self) -> None:
        VectorCodebook(self.count, 1, self.entry_bits)
        check_whole("a number of parts", self.parts, 1, MOST_VECTORS)

    @property
    def needs_row(self) -> bool:
        """Return True, because the width follows from the length of a row."""
        return True

    @property
    def bits(self) -> float:
        """Raise, because the width follows from the length of a row, `ceil(log2 K) parts / row`."""
        raise ProbqError(
            f"the width of a product codebook of {self.parts} parts follows from the length of a row; ask it of "
            "codebook.for_row(length)"
        )

    def levels(self) -> Tensor:
        """Return the values that an entry of a vector may take, in ascending order."""
        return VectorCodebook(self.count, 1, self.entry_bits).levels()

    def encode(self, values: Tensor) -> Tensor:
        """Raise, because the vectors are those of a quantizer, learned from its weight."""
        raise ProbqError(UNFITTED)

    def for_row(self, length: int) -> VectorCodebook:
        """Return the codebook for rows of so many weights, with a table for each part.

        Raises:
            ProbqError: if the parts do not divide the row.
        """
        if length % self.parts:
            raise ProbqError(
                f"{self.parts} parts do not divide a row of {length} weights; give a number of parts that divides "
                f"{length}"
            )
        return VectorCodebook(self.count, length // self.parts, self.entry_bits, self.parts)


def product(levels: int, parts: int, entry_bits: int = WIDEST_ENTRY) -> ProductCodebook:
    """Return a codebook of vectors that cuts each row into `parts`, with a table for each part of all rows.

    With rows of `R` weights a weight takes `ceil(log2 K) parts / R` bits, and the tables take `K R entry_bits` bits;
    all else is as in `vector`. Since each part has its own inputs, its table fits them better, and there are more
    tables to store.

    Args:
        levels: number `K` of vectors in each table, 2 to 65536.
        parts: number of parts, which divides the row.
        entry_bits: width of the tables' integers in bits, 2 to 8.

    Raises:
        ProbqError: if a number is out of its range.

    Source: H. Jegou, M. Douze, C. Schmid, 2011, "Product Quantization for Nearest Neighbor Search"; J. Wu, C. Leng, Y.
    Wang, Q. Hu, J. Cheng, 2016, "Quantized Convolutional Neural Networks for Mobile Devices".

    Example:
        >>> book = product(16, parts=8).for_row(64)
        >>> book.size, book.bits, book.table_bits
        (8, 0.5, 8192)
    """
    return ProductCodebook(levels, parts, entry_bits)
