"""Integer tensors are stored as codes, each at its own width: of single levels, or of vectors in a table."""

from probq.integer.packing.scalars import (
    LARGEST_LEVEL,
    MOST_ELEMENTS,
    Levels,
    Packing,
    bits_of,
    pack,
    size_in_bits,
    smallest,
    unpack,
)
from probq.integer.packing.vectors import AnyPacking, VectorPacking, pack_codes, stored_bits, unpack_codes

__all__ = [
    "LARGEST_LEVEL",
    "MOST_ELEMENTS",
    "AnyPacking",
    "Levels",
    "Packing",
    "VectorPacking",
    "bits_of",
    "pack",
    "pack_codes",
    "size_in_bits",
    "smallest",
    "stored_bits",
    "unpack",
    "unpack_codes",
]
