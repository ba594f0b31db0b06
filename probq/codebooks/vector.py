"""A vector codebook gives several neighbouring weights one code, the number of a vector in a table."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from probq.codebooks.codebook import Codebook
from probq.utils.errors import ProbqError

MOST_VECTORS = 2**16
WIDEST_ENTRY = 8


@dataclass(frozen=True)
class VectorCodebook(Codebook):
    """A vector codebook has tables of `count` vectors of `size` entries, integers that `entry_bits` bits hold.

    What the vectors are, each quantizer learns for its own weight. A code stands for `size` neighbouring weights.

    Args:
        count: number `K` of vectors in a table, 2 to 65536.
        size: number `d` of weights that share a code.
        entry_bits: width of the entries in bits, 2 to 8.
        tables: number of tables, 1, or one for each part of a row.

    Raises:
        ProbqError: if a number is out of its range.
    """

    count: int
    size: int
    entry_bits: int = WIDEST_ENTRY
    tables: int = 1

    def __post_init__(self) -> None:
        check_whole("a number of vectors", self.count, 2, MOST_VECTORS)
        check_whole("a size of vectors", self.size, 1, MOST_VECTORS)
        check_whole("an entry_bits", self.entry_bits, 2, WIDEST_ENTRY)
        check_whole("a number of tables", self.tables, 1, MOST_VECTORS)

    @property
    def code_bits(self) -> int:
        """Return the width of a code in bits, `ceil(log2 K)`."""
        return math.ceil(math.log2(self.count))

    @property
    def bits(self) -> float:
        """Return the width of one weight in bits, `ceil(log2 K) / d`, without the table."""
        return self.code_bits / self.size if self.code_bits % self.size else self.code_bits // self.size

    @property
    def table_bits(self) -> int:
        """Return the bits that the tables take, `tables * K * d * entry_bits`."""
        return self.tables * self.count * self.size * self.entry_bits

    @property
    def largest(self) -> int:
        """Return the largest entry, `2^(entry_bits - 1) - 1`."""
        return 2 ** (self.entry_bits - 1) - 1

    def levels(self) -> Tensor:
        """Return the values that an entry of a vector may take, in ascending order."""
        return torch.arange(-self.largest, self.largest + 1, dtype=torch.get_default_dtype())

    def encode(self, values: Tensor) -> Tensor:
        """Raise, because the vectors are those of a quantizer, learned from its weight."""
        raise ProbqError(UNFITTED)

    def decode(self, codes: Tensor) -> Tensor:
        """Raise, because the vectors are those of a quantizer, learned from its weight."""
        raise ProbqError(UNFITTED)

    def nearest(self, values: Tensor) -> Tensor:
        """Raise, because the vectors are those of a quantizer, learned from its weight."""
        raise ProbqError(UNFITTED)

    def for_row(self, length: int) -> VectorCodebook:
        """Return the codebook itself, if its vectors fill rows of so many weights.

        Raises:
            ProbqError: if they do not.
        """
        if length % self.size:
            raise ProbqError(
                f"vectors of {self.size} weights do not fill a row of {length}; give a size that divides {length}"
            )
        return self


UNFITTED = (
    "a vector codebook has no vectors before it is given to a trained weight; give it in "
    "Plan(weight=probq.codebooks.ladder(...)), and probq.quantize finds them"
)


def vector(levels: int, size: int, entry_bits: int = WIDEST_ENTRY) -> VectorCodebook:
    """Return a codebook of vectors, one table for all of a weight: `size` neighbours in a row share one code.

    A weight takes `ceil(log2 K) / d` bits, and the table `K d entry_bits` bits, which `probq.cost.storage` counts too.
    Products are those of the table's entries, so `probq.cost.bops` counts `entry_bits` for a weight. A row holds the
    weights of one output channel (of an embedding, of one index), each kernel's behind one another. `quantize` finds
    the vectors by k-means, weighted by the squares of the inputs that each weight meets, and `fit` goes on to learn
    them, at the rate `probq.Rates(vectors=...)`: they are meant for networks that are trained.

    Args:
        levels: number `K` of vectors, 2 to 65536.
        size: number `d` of weights of a vector, which divides the row.
        entry_bits: width of the table's integers in bits, 2 to 8.

    Raises:
        ProbqError: if a number is out of its range.

    Source: Y. Gong, L. Liu, M. Yang, L. Bourdev, 2014, "Compressing Deep Convolutional Networks using Vector
    Quantization"; P. Stock, A. Joulin, R. Gribonval, B. Graham, H. Jegou, 2020, "And the Bit Goes Down: Revisiting the
    Quantization of Neural Networks" (k-means weighted by activations).

    Example:
        >>> book = vector(64, 4)
        >>> book.bits, book.table_bits
        (1.5, 2048)
    """
    return VectorCodebook(levels, size, entry_bits)


def check_whole(what: str, value: int, least: int, most: int) -> None:
    """Raise unless a number of a vector codebook is an integer in its range."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ProbqError(f"a vector codebook has {what} from {least} to {most}, not {value!r}")
