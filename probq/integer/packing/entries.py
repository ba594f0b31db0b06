"""Codebooks of integers are written as JSON here, and read back as if a stranger had written them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from probq.integer.packing.scalars import LARGEST_LEVEL, Levels, Packing, bits_of
from probq.utils.errors import ProbqError

Fields = Mapping[str, Any]
_RANGE: Fields = MappingProxyType({"bits": int, "signed": bool, "start": int, "step": int, "count": int})
_LEVELS: Fields = MappingProxyType({"bits": int, "signed": bool, "levels": list})


def check_fields(entry: Any, fields: Fields, where: str) -> None:
    """Refuse what is not a dict of exactly these fields and types.

    Raises:
        ProbqError: naming the field, and `where` it is.
    """
    if not isinstance(entry, dict) or set(entry) != set(fields):
        raise ProbqError(f"{where} must hold exactly {', '.join(fields)}")
    for name, kind in fields.items():
        right = isinstance(entry[name], kind) and (kind is not int or type(entry[name]) is int)
        if not right:
            named = kind[0] if isinstance(kind, tuple) else kind
            raise ProbqError(f"{where}: {name} must be of type {named.__name__}, not {entry[name]!r:.80}")


def describe_levels(levels: Levels) -> dict[str, Any]:
    """Return the entry of a codebook."""
    entry: dict[str, Any] = {"bits": bits_of(levels), "signed": levels[0] < 0}
    if isinstance(levels, range):
        return entry | {"start": levels.start, "step": levels.step, "count": len(levels)}
    return entry | {"levels": levels}


def read_levels(entry: Any) -> Levels:
    """Return the codebook of an entry.

    Raises:
        ProbqError: it is not one.
    """
    is_range = isinstance(entry, dict) and "levels" not in entry
    check_fields(entry, _RANGE if is_range else _LEVELS, "a codebook")
    numbers = [entry["start"], entry["step"], entry["count"]] if is_range else entry["levels"]
    if not all(type(number) is int and abs(number) <= LARGEST_LEVEL for number in numbers):
        raise ProbqError("a codebook must hold integers within +-2^61")
    if is_range:
        start, step, count = numbers
        if step < 1 or count < 1 or start + step * (count - 1) > LARGEST_LEVEL:
            raise ProbqError("a codebook must hold at least one level, ascending, within +-2^61")
        levels: Levels = range(start, start + step * count, step)
    else:
        levels = tuple(numbers)
    Packing((levels,), np.array(0))
    if entry["bits"] != bits_of(levels) or entry["signed"] != (levels[0] < 0):
        raise ProbqError("a codebook's bits or sign disagree with its levels")
    return levels
