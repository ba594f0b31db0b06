"""An integer model is compared with the network that it was made of on these inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from probq.integer import Node
from probq.integer.lowering.exported import BATCH
from probq.network.program.network import Network
from probq.network.tracing.arguments import axis_in, shapes_of_batch
from probq.utils.arguments import is_count
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import some_rows, tensors_in, with_tensors

MOST_ROWS, WORK = 16, 2**26  # multiply-accumulates of one comparison


def check_inputs(
    q: Network, sources: Mapping[int, Node], rows_looked_up: int | None = None
) -> Iterator[tuple[Any, ...]]:
    """Yield batches of the network's arguments: rows of the example, one random example, and a batch of them.

    A random number is a multiple of half of the input's step: rounding meets its ties, and clipping what lies beyond
    both ends of the codebook.

    Args:
        q: the network, on the CPU.
        sources: an input of the integer model that reads a tensor, by its place among the tensors of the arguments.
        rows_looked_up: of the smallest embedding whose indices are computed; None where there is none.
    """
    rows = max(1, min(MOST_ROWS, WORK // max(1, sum(layer.macs for layer in q.layers))))
    if q.example:
        yield some_rows(q.example, 0, rows)
    generator = torch.Generator().manual_seed(0)
    for size in (1, rows + (2 if rows == BATCH - 1 else 1)):  # a forward may look at the size of its batch
        numbered = enumerate(shapes_of_batch(q.signature, q.form, size))
        drawn = [_random(sources.get(k), shape, dtype, generator, rows_looked_up) for k, (shape, dtype) in numbered]
        yield tuple(with_tensors(q.form, drawn))


def lengths_tried(q: Network, axis: int) -> tuple[int, ...]:
    """Return the lengths at which a network is lowered whose inputs may have any on an axis, and one to check it at.

    Raises:
        ProbqError: the first input has no such axis.
    """
    shape = next(iter(shapes_of_batch(q.signature, q.form, BATCH)))[0]
    if not is_count(axis, 1) or axis >= len(shape):
        raise ProbqError(
            f"free_axis is an axis of the first input, from 1 to {len(shape) - 1} behind the batch, not {axis!r:.80}"
        )
    return shape[axis], shape[axis] + 1, shape[axis] + 2, 2 * shape[axis] + 3


def inputs_of_length(q: Network, axis: int, length: int) -> tuple[Any, ...]:
    """Return the example of a network with another length on an axis, of all inputs that have it from the first one."""
    now = tuple(q.example)
    if not now:
        zeros = (torch.zeros(shape, dtype=dtype) for shape, dtype in shapes_of_batch(q.signature, q.form, BATCH))
        now = tuple(with_tensors(q.form, zeros))
    first = next(tensors_in(now)).shape[axis]
    places = torch.arange(length) % first
    long = [
        x.index_select(axis, places) if axis < x.dim() and x.shape[axis] == first and axis_in(own) != axis else x
        for x, own in zip(tensors_in(now), tensors_in(q.form), strict=True)
    ]
    return tuple(with_tensors(now, long))


def _random(
    source: Node | None, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, most: int | None
) -> Tensor:
    given = {"lo": 0, "hi": 1} if source is None else source.attributes  # what no output depends on
    if not dtype.is_floating_point:
        low, high = (0, given["count"] - 1) if given.get("index") else (given["lo"], given["hi"])
        high = high if most is None else max(low, min(high, most - 1))
        return torch.randint(low, high + 1, shape, generator=generator).to(dtype)
    low, high = (given.get("start", 0) + given.get("step", 1) * int(given.get(end, 0)) for end in ("lo", "hi"))
    halves = torch.randint(2 * low - 3, 2 * high + 4, shape, generator=generator)
    return halves.to(dtype) * (given.get("scale", 1.0) / 2)
