"""Codebooks are written as JSON here, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from probq.codebooks.codebook import Codebook, Grid, Table
from probq.codebooks.vector import VectorCodebook
from probq.utils.errors import ProbqError


def to_entry(book: Codebook) -> dict[str, Any]:
    """Return the fields of a codebook.

    Raises:
        ProbqError: if it is of the user's own.
    """
    if isinstance(book, Grid | Table | VectorCodebook):
        return asdict(book)
    kind = type(book).__name__
    raise ProbqError(f"a file cannot hold a codebook of one's own ({kind}); use those of probq.codebooks")


def from_entry(entry: Mapping[str, Any]) -> Codebook:
    """Return the codebook of an entry."""
    if "values" in entry:
        return Table(tuple(entry["values"]), bool(entry["learned"]))
    return VectorCodebook(**entry) if "entry_bits" in entry else Grid(**entry)
