"""Structures are written as JSON here, and read back as if a stranger had written them."""

from __future__ import annotations

import keyword
from collections import namedtuple
from collections.abc import Callable, Mapping
from typing import Any

from probq.utils.errors import ProbqError
from probq.utils.structures.walk import Structure, parts

MOST_DEPTH, MOST_LEAVES = 16, 4096
KINDS = ("tuple", "list", "dict", "named")


def to_entry(structure: Structure) -> Any:
    """Return what JSON can hold of a structure: a leaf itself, or a dict of one key, its kind.

    Raises:
        ProbqError: the key of a dictionary is no text, or it is nested too deeply.

    >>> to_entry(("a", {"x": "b", "y": None}))
    {'tuple': ['a', {'dict': [['x', 'b'], ['y', None]]}]}
    """
    return _entry(structure, 0)


def _entry(structure: Structure, depth: int) -> Any:
    own = parts(structure)
    if own is None:
        return structure
    _check_depth(depth)
    pairs = [[name, _entry(part, depth + 1)] for name, part in own]
    if isinstance(structure, Mapping):
        for key in structure:
            if not isinstance(key, str):
                raise ProbqError(f"the keys of dictionaries are texts, and {key!r:.80} is none; name it otherwise")
        return {"dict": pairs}
    if hasattr(structure, "_fields"):
        return {"named": [type(structure).__name__, pairs]}
    return {"list" if isinstance(structure, list) else "tuple": [part for _, part in pairs]}


def from_entry(entry: Any, is_leaf: Callable[[Any], bool]) -> Structure:
    """Return the structure of an entry; a named tuple is one of the same name and fields, not of the same class.

    Args:
        entry: from `to_entry`.
        is_leaf: whether what JSON gives is a leaf.

    Raises:
        ProbqError: it is no structure, too large or too deep, or a leaf is none.

    >>> from_entry({"named": ["Boxes", [["x", 1], ["y", 2]]]}, lambda leaf: type(leaf) is int)
    Boxes(x=1, y=2)
    """
    return _structure(entry, is_leaf, 0, [0])


def _structure(entry: Any, is_leaf: Callable[[Any], bool], depth: int, count: list[int]) -> Structure:
    count[0] += 1
    if count[0] > MOST_LEAVES:
        raise ProbqError(f"a structure has at most {MOST_LEAVES:,} parts; save it again")
    if not isinstance(entry, dict):
        if isinstance(entry, list) or not is_leaf(entry):
            raise ProbqError(f"{entry!r:.80} is no part of a structure; save it again")
        return entry
    _check_depth(depth)
    kind, content = next(iter(entry.items()), ("", None))
    if len(entry) != 1 or kind not in KINDS or not isinstance(content, list):
        raise ProbqError(f"{entry!r:.80} is no structure: one of {', '.join(KINDS)} with a list; save it again")
    if kind in ("tuple", "list"):
        items = [_structure(part, is_leaf, depth + 1, count) for part in content]
        return items if kind == "list" else tuple(items)
    name = ""
    if kind == "named":
        if len(content) != 2 or not _is_name(content[0]) or not isinstance(content[1], list):
            raise ProbqError(f"{content!r:.80} is no named tuple: a name, and fields; save it again")
        name, content = content
    if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in content):
        raise ProbqError(f"{content!r:.80} are no pairs of a key and a part; save it again")
    found = {key: _structure(part, is_leaf, depth + 1, count) for key, part in content}
    if len(found) != len(content) or (name and not all(map(_is_name, found))):
        raise ProbqError(f"{list(found)!r:.80} are keys of a structure that repeat or are no names; save it again")
    return namedtuple(name, list(found))(*found.values()) if name else found


def _is_name(name: Any) -> bool:
    """Return whether a named tuple may have a name: what Python takes as one, and does not use itself."""
    plain = isinstance(name, str) and name.isascii() and name.isidentifier() and len(name) <= 256
    return plain and not keyword.iskeyword(name) and not name.startswith("_")


def _check_depth(depth: int) -> None:
    if depth >= MOST_DEPTH:
        raise ProbqError(f"a structure is nested at most {MOST_DEPTH} times; make it flatter")
