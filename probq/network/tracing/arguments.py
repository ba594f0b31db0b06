"""This module handles the arguments that networks and their modules are called with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from probq.utils.batches import some_rows

ROWS = 16  # of the example that are kept for the check of the integers


def arguments(example: Any) -> tuple[Any, ...]:
    """Return the positional arguments that an example stands for: itself, or its members if it is a tuple or a list."""
    return tuple(example) if isinstance(example, tuple | list) else (example,)


def signature(example: Any) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """Return the shape without the batch, and type, of every tensor among the network's arguments."""
    return tuple((tuple(a.shape[1:]), a.dtype) for a in arguments(example) if isinstance(a, Tensor))


def first_rows(example: Any) -> tuple[Any, ...]:
    """Return the arguments of an example with a copy of a few rows of each tensor, on the CPU."""
    few = some_rows(arguments(example), 0, ROWS)
    return tuple(a.detach().cpu().clone() if isinstance(a, Tensor) else a for a in few)


def with_tensors(example: tuple[Any, ...], tensors: Iterable[Tensor]) -> tuple[Any, ...]:
    """Return arguments with other tensors, in order; what else an example holds is as there."""
    left = iter(tensors)
    return tuple(next(left) if isinstance(a, Tensor) else a for a in example) or tuple(left)


def hook_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the input tensor of a module called with `args` and `kwargs`."""
    return args[0] if args else kwargs.get("input", next(iter(kwargs.values()), None))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors among arguments or outputs, in tuples, lists and dictionaries of any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from tensors_in(one)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def own_copy(x: Any) -> Any:
    """Return the network's arguments with tensors of their own, which a forward may change in place."""
    return tuple(map(own_copy, x)) if isinstance(x, tuple | list) else x.clone() if isinstance(x, Tensor) else x
