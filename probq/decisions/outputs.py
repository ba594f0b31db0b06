"""Several decided networks give their outputs at once, in one pass over all that have the same widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probq.codebooks.rounding.nearest import code_levels
from probq.decisions.assignment import Assignment
from probq.network.program.decided_codes import rung_onehots
from probq.network.program.program import Program
from probq.network.program.vectorized import vectorized_outputs
from probq.utils.structures.tensors import map_tensors, tensors_in

MOST_ROWS = 4096  # examples times networks held at once


@torch.no_grad()
def stacked_outputs(q: Program, assignments: Sequence[Assignment], args: tuple[Any, ...]) -> Tensor | None:
    """Return outputs `[assignments, batch, ...]` in float64 from one vectorised pass.

    The result is None where that would not work or pay.

    It pays for linear and embedding layers; many convolutions with weights of their own are slower than one by one.

    Args:
        q: the network.
        assignments: two or more with the same widths.
        args: the network's arguments.
    """
    chunk = MOST_ROWS // max([1, *(len(a) for a in tensors_in(args) if a.dim())])
    convolutions = any(len(layer.shape) > 2 for layer in q.layers)
    if convolutions or min(chunk, len(assignments)) < 2 or not _same_widths(assignments):
        return None
    chosen = rung_onehots(q, assignments[0].widths)
    with q.evaluating():
        levels = {}
        for name in q.weight_names:
            codes = np.stack([a.codes[name] for a in assignments])
            own = q.rung(name, chosen[name]).levels
            levels[name] = torch.func.vmap(lambda c, own=own: code_levels(own, c))(
                torch.as_tensor(codes, device=q.device).long()
            )
    return vectorized_outputs(q, chosen, levels, args, chunk)


def _same_widths(assignments: Sequence[Assignment]) -> bool:
    first = assignments[0].widths
    return all(np.array_equal(a.widths[name], first[name]) for a in assignments[1:] for name in first)


def cast_like_inputs(output: Any, args: tuple[Any, ...]) -> Any:
    """Return the output in the precision of the inputs."""
    floats = [a.dtype for a in tensors_in(args) if a.is_floating_point()]
    dtype = floats[0] if floats else torch.get_default_dtype()
    return map_tensors(lambda one: one.to(dtype) if one.is_floating_point() else one, output)
