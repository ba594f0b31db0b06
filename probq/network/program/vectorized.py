"""One vectorised pass gives the outputs of several networks that differ in their codes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from probq.network.program.program import Program


@torch.no_grad()
def vectorized_outputs(
    q: Program,
    onehots: Mapping[str, Tensor],
    levels: Mapping[str, Tensor],
    args: tuple[Any, ...],
    chunk: int | None = None,
) -> Tensor | None:
    """Return the outputs `[networks, batch, ...]` in float64 of networks that differ in their codes.

    The result is None where they cannot be vectorised.

    Args:
        q: the network.
        onehots: rungs that all share.
        levels: the levels of every weight, `[networks, *shape]`.
        args: the network's arguments.
        chunk: greatest number of networks at once.
    """
    with q.evaluating(), warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where an operation of the network is not vectorised
        try:
            outputs = torch.func.vmap(lambda own: q.run(onehots, own, args, exact=True), chunk_size=chunk)(levels)
        except (RuntimeError, Warning):
            return None
    return outputs if isinstance(outputs, Tensor) else None
