"""This module compares what a user gives with the structure that it must have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probq.utils.errors import ProbqError
from probq.utils.structures.walk import Structure


def matched(structure: Structure, given: Any, what: str) -> dict[str, Any]:
    """Return what is given in the place of each name, the leaves that are texts, by that name.

    Other leaves are constants, which must be given as they are.

    Args:
        structure: of names.
        given: what is built alike; a list will do for a tuple, and a mapping of any kind for a dictionary.
        what: what it is, for messages, such as "the argument".

    Raises:
        ProbqError: it is built otherwise; with the place of the first difference.

    >>> matched(("x", {"ids": "y", "mask": None}), (1, {"ids": 2, "mask": None}), "the argument")
    {'x': 1, 'y': 2}
    """
    found: dict[str, Any] = {}
    _match(structure, given, what, (), found)
    return found


def _match(structure: Structure, given: Any, what: str, way: tuple[Any, ...], found: dict[str, Any]) -> None:
    place = f"{what}, at {'.'.join(map(str, way)):.80}," if way else what
    if isinstance(structure, str):
        _check_tensor(given, place)
        found[structure] = given
    elif isinstance(structure, Mapping):
        _check_keys(structure, given, place)
        for key, part in structure.items():
            _match(part, given[key], what, (*way, key), found)
    elif isinstance(structure, tuple | list):
        if not isinstance(given, tuple | list) or len(given) != len(structure):
            has = f" of {len(given)}" if isinstance(given, tuple | list) else ""
            raise ProbqError(f"{place} is a {type(given).__name__}{has}; give a tuple of {len(structure)}")
        for number, (part, one) in enumerate(zip(structure, given, strict=True)):
            _match(part, one, what, (*way, number), found)
    elif type(given) is not type(structure) or given != structure:
        shown = f"{given!r:.40}" if isinstance(given, bool | int | float | str | None) else f"a {type(given).__name__}"
        raise ProbqError(f"{place} is {shown}; give {structure!r:.40}, as when the network was quantized")


def _check_tensor(given: Any, place: str) -> None:
    if given is None:
        raise ProbqError(f"{place} is None; give a tensor, as when the network was quantized")
    if isinstance(given, Mapping):
        raise ProbqError(
            f"{place} is a dictionary with {_keys(given)}, ; give a tensor, as when the network was quantized"
        )


def _check_keys(structure: Mapping[Any, Any], given: Any, place: str) -> None:
    if not isinstance(given, Mapping):
        raise ProbqError(f"{place} is a {type(given).__name__}; give a dictionary with {_keys(structure)}")
    if missing := [key for key in structure if key not in given]:
        raise ProbqError(f"{place} has no {missing[0]!r:.80}; give a dictionary with {_keys(structure)}")
    if unexpected := [key for key in given if key not in structure]:
        raise ProbqError(f"{place} has {unexpected[0]!r:.80}, which is not among {_keys(structure)}; leave it out")


def _keys(mapping: Mapping[Any, Any]) -> str:
    return f"the keys {', '.join(repr(key) for key in list(mapping)[:8])}"
