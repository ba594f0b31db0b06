"""Tensors of vectors are described for a file here: blobs of their codes and of their table, and an entry in JSON."""

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from probq.integer.packing.scalars import pack, unpack
from probq.integer.packing.vectors import ENTRY, MOST_TABLE, VectorPacking, pack_codes, stored_bits
from probq.utils.errors import ProbqError

FIELDS: Mapping[str, Any] = MappingProxyType({"tables": int, "count": int, "size": int, "bits": int, "sha256": str})
TABLE = "/table"  # what the key of a table's blob ends in


def describe_vectors(
    values: np.ndarray, packing: VectorPacking, key: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the entry of a tensor of vectors, and its blobs by key.

    Raises:
        ProbqError: a vector of the tensor is not in its table.
    """
    stored_bits(values.shape, packing)
    blobs = {key: pack_codes(values, packing), key + TABLE: pack(packing.table, packing.of_table)}
    sizes = dict(zip(("tables", "count", "size"), packing.table.shape, strict=True))
    vectors = {**sizes, "bits": packing.bits, "sha256": _digest(blobs[key + TABLE])}
    return {"shape": values.shape, "vectors": vectors, "sha256": _digest(blobs[key])}, blobs


def vector_packing(entry: Mapping[str, Any], take: Callable[[Mapping[str, Any]], np.ndarray]) -> VectorPacking:
    """Return the packing that an entry of `FIELDS` describes.

    Args:
        entry: its numbers may be anything.
        take: gives the blob of the table.

    Raises:
        ProbqError: they are out of range, or the blob does not fit.
    """
    sizes = tuple(entry[name] for name in ("tables", "count", "size"))
    sane = all(0 < size <= MOST_TABLE for size in sizes) and sizes[0] * sizes[1] * sizes[2] <= MOST_TABLE
    if not sane or not ENTRY[0] <= entry["bits"] <= ENTRY[1]:
        raise ProbqError(
            f"a table of vectors has 1 to {MOST_TABLE:,} integers of {ENTRY[0]} to {ENTRY[1]} bits; save the model "
            "again"
        )
    blank = VectorPacking(np.zeros((1, 1, 1), np.int64), entry["bits"])
    return VectorPacking(unpack(take(entry), sizes, blank.of_table), entry["bits"])


def _digest(blob: np.ndarray) -> str:
    return hashlib.sha256(blob.tobytes()).hexdigest()
