"""Arguments and outputs of networks hold tensors in tuples, lists and dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from probq.utils.structures.walk import leaves, map_leaves


class Keywords(dict[str, Any]):
    """These arguments of a network are given by keyword; they stand behind all others."""


def arguments(example: Any) -> tuple[Any, ...]:
    """Return the arguments that an example stands for.

    They are its members if it is a tuple or a list, its items by keyword if it is a mapping, and otherwise itself.
    """
    if isinstance(example, Mapping):
        return (Keywords(example),)
    return tuple(example) if isinstance(example, tuple | list) else (example,)


def call(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Return what a network, or a function like it, gives for its arguments."""
    if args and isinstance(args[-1], Keywords):
        return function(*args[:-1], **args[-1])
    return function(*args)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors among arguments or outputs, in tuples, lists and dictionaries of any depth."""
    yield from (leaf for leaf in leaves(value) if isinstance(leaf, Tensor))


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Return arguments or outputs with a function applied to each tensor; what else they hold stays."""
    return map_leaves(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, value)


def with_tensors(value: Any, tensors: Iterable[Any]) -> Any:
    """Return arguments or outputs with other tensors, in order; what else they hold stays."""
    left = iter(tensors)
    return map_tensors(lambda _: next(left), value)


def rows_of(inputs: Any) -> int:
    """Return the number of examples, the length of the first tensor that has an axis."""
    return next((len(a) for a in tensors_in(inputs) if a.dim()), 0)


def batch_axis(tensor: Tensor, rows: int) -> int | None:
    """Return the axis of the examples: the first, or the second of what states of recurrent modules are like.

    Those are three axes of real numbers, `[layers, batch, features]`. The result is None where neither is as long as
    there are examples.
    """
    if tensor.shape[:1] == (rows,):
        return 0
    return 1 if tensor.dim() == 3 and tensor.is_floating_point() and tensor.shape[1] == rows else None


def some_rows(inputs: tuple[Any, ...], start: int, stop: int) -> tuple[Any, ...]:
    """Return a network's arguments for some examples of a batch; what has no axis of the examples stays as it is.

    Args:
        inputs: the arguments, of which the first tensor has the examples on its first axis.
        start: the first example.
        stop: the one behind the last.
    """
    rows = rows_of(inputs)

    def cut(tensor: Tensor) -> Tensor:
        axis = batch_axis(tensor, rows)
        return tensor if axis is None else tensor.movedim(axis, 0)[start:stop].movedim(0, axis)

    return tuple(map_tensors(cut, inputs))


def described(inputs: Any) -> list[Any]:
    """Return the shapes of the tensors among arguments, and the types of what else there is, for messages."""
    found: list[Any] = []
    for one in inputs:
        if isinstance(one, Tensor):
            found.append(tuple(one.shape))
        elif isinstance(one, Keywords):
            found += [f"{key}={described([part])[0]}" for key, part in one.items()]
        else:
            found.append(type(one).__name__)
    return found
