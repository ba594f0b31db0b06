"""An integer model is compared with the network that it was made of on these inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from probq.integer import Node
from probq.integer.lowering.exported import BATCH
from probq.network.program.network import Network
from probq.network.tracing.arguments import shapes_of_batch
from probq.utils.structures.tensors import some_rows, with_tensors

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
