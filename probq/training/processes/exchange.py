"""All that processes tell each other in a step is one vector, which is added up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from probq.training.processes.alone import StepMeans

MEANS = 4  # of a step, besides the number of examples


class Told(NamedTuple):
    """This is what all processes told.

    Attributes:
        means: over the examples of all of them.
        stopped: ranks of those that could not compute the step.
    """

    means: StepMeans
    stopped: list[int]


@torch.no_grad()
def told(
    means: StepMeans | None, moved: Sequence[Tensor], statistics: Sequence[Tensor], rank: int, count: int
) -> Tensor:
    """Return what one process tells, a vector that adds up.

    It holds, where `n` is the number of its examples: `n` times its gradients; whether it has each of them; the
    statistics, of the first process alone; `n`; `n` times its means; for each process whether it stopped, and whether
    its loss is not finite.

    Args:
        means: of its examples; None where it stopped.
        moved: tensors with gradients or without.
        statistics: what the others take from the first process.
        rank: of the process.
        count: of processes.
    """
    kind = torch.float32
    for tensor in (*moved, *statistics):
        kind = torch.promote_types(kind, tensor.dtype)
    device = moved[0].device
    weight = 0 if means is None else means.examples
    flags = torch.zeros(2, count, dtype=kind, device=device)
    if means is None:
        flags[0, rank] = 1
    elif not math.isfinite(means.loss):
        flags[1, rank] = 1
    values = (0.0,) * MEANS if means is None else (means.loss, means.nll, means.kl, means.taught)
    numbers = torch.tensor([weight, *(weight * value for value in values)], dtype=kind, device=device)
    parts = [torch.zeros(p.numel(), dtype=kind, device=device) if p.grad is None else p.grad.reshape(-1) for p in moved]
    present = [0.0 if p.grad is None else 1.0 for p in moved]
    own = [s.reshape(-1) if rank == 0 else s.new_zeros(s.numel()) for s in statistics]
    return torch.cat(
        [
            *(part.to(kind) * weight if weight else torch.zeros_like(part, dtype=kind) for part in parts),
            torch.tensor(present, dtype=kind, device=device),
            *(part.to(kind) for part in own),
            numbers,
            flags.reshape(-1),
        ]
    )


@torch.no_grad()
def take(total: Tensor, moved: Sequence[Tensor], statistics: Sequence[Tensor], count: int) -> Told:
    """Take the sum of what all processes told: gradients and statistics in place, the rest returned.

    What no process has a gradient of is left without one.
    """
    sizes = [p.numel() for p in moved] + [len(moved)] + [s.numel() for s in statistics] + [MEANS + 1, 2 * count]
    parts = list(total.split(sizes))
    examples, *sums = parts[-2].tolist()
    stopped, odd = parts[-1].reshape(2, count).tolist()
    found = [rank for rank, flag in enumerate(stopped) if flag]
    if not found:
        for p, part, has in zip(moved, parts, parts[len(moved)].tolist(), strict=False):
            if has:
                p.grad = torch.empty_like(p) if p.grad is None else p.grad
                p.grad.copy_((part / examples).view(p.shape))
        for s, part in zip(statistics, parts[len(moved) + 1 :], strict=False):
            s.copy_(part.view(s.shape))
    ranks = [rank for rank, flag in enumerate(odd) if flag]
    loss, nll, kl, taught = (value / max(examples, 1) for value in sums)
    return Told(StepMeans(loss, nll, kl, taught, int(examples), ranks[0] if ranks else None), found)
