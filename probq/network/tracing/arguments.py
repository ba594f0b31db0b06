"""This module handles the arguments that networks and their modules are called with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from probq.utils.structures.tensors import arguments, batch_axis, map_tensors, rows_of, some_rows, tensors_in

ROWS = 16  # of the example that are kept for the check of the integers


def signature(example: Any) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """Return the shape without the batch, and type, of every tensor among the network's arguments."""
    given = arguments(example)
    return tuple((_without(a.shape, _axis(a, given)), a.dtype) for a in tensors_in(given))


def form_of(example: Any) -> tuple[Any, ...]:
    """Return the arguments of an example with an empty tensor in the place of each tensor.

    The empty one has the axes up to that of the batch: one, unless the batch is not the first.
    """
    given = arguments(example)
    return tuple(map_tensors(lambda a: empty(a.dtype, _axis(a, given)), given))


def empty(dtype: torch.dtype, axis: int = 0) -> Tensor:
    """Return the empty tensor that stands for one with the batch on an axis."""
    return torch.empty((0,) * (axis + 1), dtype=dtype)


def axis_in(form: Tensor) -> int:
    """Return the axis of the batch in what an empty tensor stands for."""
    return form.dim() - 1


def shapes_of_batch(
    signature: Sequence[tuple[tuple[int, ...], torch.dtype]], form: tuple[Any, ...] | None, rows: int
) -> Iterator[tuple[tuple[int, ...], torch.dtype]]:
    """Yield the shape for some examples, and type, of every tensor among the network's arguments.

    Args:
        signature: as `signature` gives it.
        form: as `form_of` gives it; None: the batch is the first axis of each.
        rows: examples.
    """
    axes = [0] * len(signature) if form is None else [axis_in(one) for one in tensors_in(form)]
    for (shape, dtype), axis in zip(signature, axes, strict=True):
        yield (*shape[:axis], rows, *shape[axis:]), dtype


def _axis(tensor: Tensor, given: tuple[Any, ...]) -> int:
    return batch_axis(tensor, rows_of(given)) or 0


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


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
