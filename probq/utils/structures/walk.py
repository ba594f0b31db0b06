"""A structure is a leaf, or a tuple, list, named tuple or mapping of structures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

Structure: TypeAlias = Any


def parts(structure: Structure) -> list[tuple[str, Any]] | None:
    """Return what a structure holds, each part with its key, field or place; None of a leaf.

    >>> parts({"boxes": 1, "scores": (2, 3)})
    [('boxes', 1), ('scores', (2, 3))]
    >>> parts((4, 5)), parts(6)
    ([('0', 4), ('1', 5)], None)
    """
    if isinstance(structure, Mapping):
        return [(str(key), part) for key, part in structure.items()]
    if isinstance(structure, tuple | list):
        names = getattr(structure, "_fields", range(len(structure)))
        return [(str(name), part) for name, part in zip(names, structure, strict=True)]
    return None


def rebuilt(structure: Structure, items: Sequence[Any]) -> Any:
    """Return a structure of the same kind with other parts; mappings that are no `dict` become one."""
    if isinstance(structure, Mapping):
        made = dict(zip(structure, items, strict=True))
        return (
            type(structure)(made) if isinstance(structure, dict) and not hasattr(structure, "default_factory") else made
        )
    return type(structure)(*items) if hasattr(structure, "_fields") else type(structure)(items)


def map_leaves(function: Callable[..., Any], structure: Structure, *others: Structure) -> Any:
    """Return the structure of what a function gives of each leaf, and of those of `others`, which are built alike.

    >>> map_leaves(lambda a, b: a + b, {"x": (1, 2)}, {"x": (3, 4)})
    {'x': (4, 6)}
    """
    own = parts(structure)
    if own is None:
        return function(structure, *others)
    rows = zip((part for _, part in own), *([part for _, part in parts(other) or ()] for other in others), strict=True)
    return rebuilt(structure, [map_leaves(function, *row) for row in rows])


def leaves(structure: Structure) -> Iterator[Any]:
    """Yield the leaves in order."""
    own = parts(structure)
    if own is None:
        yield structure
        return
    for _, part in own:
        yield from leaves(part)


def named_leaves(structure: Structure, name: str) -> list[tuple[str, Any]]:
    """Return the leaves in order, each with a name of its own: that of the whole, and the way to the leaf behind dots.

    >>> named_leaves({"boxes": 1, "scores": (2, 3)}, "output")
    [('output.boxes', 1), ('output.scores.0', 2), ('output.scores.1', 3)]
    """
    taken: dict[str, int] = {}
    result = []
    for path, leaf in _paths(structure, name):
        taken[path] = taken.get(path, 0) + 1
        result.append((path if taken[path] == 1 else f"{path}@{taken[path]}", leaf))
    return result


def _paths(structure: Structure, path: str) -> Iterator[tuple[str, Any]]:
    own = parts(structure)
    if own is None:
        yield path, structure
        return
    for name, part in own:
        yield from _paths(part, f"{path}.{name}")
