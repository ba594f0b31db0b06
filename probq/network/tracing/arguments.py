"""This module handles the arguments that networks and their modules are called with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probq.utils.structures.tensors import arguments, map_tensors, some_rows, tensors_in

ROWS = 16  # of the example that are kept for the check of the integers


def signature(example: Any) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """Return the shape without the batch, and type, of every tensor among the network's arguments."""
    return tuple((tuple(a.shape[1:]), a.dtype) for a in tensors_in(arguments(example)))


def form_of(example: Any) -> tuple[Any, ...]:
    """Return the arguments of an example with an empty tensor in the place of each tensor."""
    return tuple(map_tensors(lambda a: torch.empty(0, dtype=a.dtype), arguments(example)))


def first_rows(example: Any) -> tuple[Any, ...]:
    """Return the arguments of an example with a copy of a few rows of each tensor, on the CPU."""
    few = some_rows(arguments(example), 0, ROWS)
    return tuple(map_tensors(lambda a: a.detach().cpu().clone(), few))


def hook_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the input tensor of a module called with `args` and `kwargs`."""
    return args[0] if args else kwargs.get("input", next(iter(kwargs.values()), None))


def own_copy(x: Any) -> Any:
    """Return the network's arguments with tensors of their own, which a forward may change in place."""
    return map_tensors(Tensor.clone, x)
