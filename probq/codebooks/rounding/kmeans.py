"""k-means finds the vectors of a codebook, each number of each point with a weight of its own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from probq.utils.errors import ProbqError

MOST_STEPS = 50
MOST_DISTANCES = 2**22  # held at once


class Clusters(NamedTuple):
    """Clusters are what k-means finds.

    Attributes:
        centres: `[K, d]` float64.
        members: the cluster of each point, `[n]`.
        objective: `sum_n sum_i h_ni (x_ni - c_i)^2` with the centre `c` of each point.
    """

    centres: Tensor
    members: Tensor
    objective: float


@torch.no_grad()
def weighted_kmeans(
    points: Tensor, weights: Tensor, count: int, starts: int = 1, centres: Tensor | None = None
) -> Clusters:
    """Return the clusters of least `sum_n sum_i h_ni (x_ni - c_i)^2` that Lloyd's steps find.

    It always finds the same ones of the same points, and leaves torch's random numbers alone.

    Args:
        points: `x`, `[n, d]`.
        weights: `h`, positive, `[n, d]`.
        count: number `K` of clusters.
        starts: number of beginnings, by k-means++, of which the best is kept.
        centres: to begin with instead, `[K, d]`.

    Raises:
        ProbqError: if there are fewer different points than clusters.

    Source: S. Lloyd, 1982, "Least Squares Quantization in PCM"; D. Arthur, S. Vassilvitskii, 2007, "k-means++: The
    Advantages of Careful Seeding".

    Example:
        >>> found = weighted_kmeans(torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([[3.0], [1.0], [1.0]]), 2)
        >>> sorted(found.centres.flatten().tolist())
        [0.25, 9.0]
    """
    x, h = points.detach().double(), weights.detach().double()
    different = len(torch.unique(x, dim=0))
    if different < count:
        raise ProbqError(
            f"a codebook of {count} vectors is too large for a weight with {different} different sub-vectors; train "
            "the network first, or give fewer vectors"
        )
    if centres is not None:
        return _lloyd(x, h, centres.detach().double())
    chance = torch.Generator(device=x.device).manual_seed(0)
    found = [_lloyd(x, h, _spread_out(x, h, count, chance)) for _ in range(starts)]
    return min(found, key=lambda clusters: clusters.objective)


def _spread_out(x: Tensor, h: Tensor, count: int, chance: torch.Generator) -> Tensor:
    """Return points to begin with, each drawn in proportion to its distance from those before."""
    places = torch.rand(count, dtype=x.dtype, device=x.device, generator=chance)
    mass, nearest, centres = h.sum(1), torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device), []
    for place in places:
        bounds = mass.cumsum(0)
        centres.append(x[torch.searchsorted(bounds, place * bounds[-1]).clamp_max(len(x) - 1)])
        nearest = torch.minimum(nearest, (h * (x - centres[-1]).square()).sum(1))
        mass = nearest
    return torch.stack(centres)


def _lloyd(x: Tensor, h: Tensor, centres: Tensor) -> Clusters:
    before = torch.inf
    for _ in range(MOST_STEPS):
        members, distance = _assigned(x, h, centres)
        objective = float(distance.sum())
        if objective >= before * (1 - 1e-9):
            break
        before = objective
        shape = centres.shape
        mass = torch.zeros(shape, dtype=x.dtype, device=x.device).index_add_(0, members, h)
        total = torch.zeros(shape, dtype=x.dtype, device=x.device).index_add_(0, members, h * x)
        centres = torch.where(mass > 0, total / mass.clamp_min(torch.finfo(x.dtype).tiny), centres)
        empty = (mass.sum(1) == 0).nonzero().flatten()
        if len(empty):  # they begin again where points are farthest from their centres
            centres[empty] = x[distance.topk(len(empty)).indices]
            before = torch.inf
    members, distance = _assigned(x, h, centres)
    return Clusters(centres, members, float(distance.sum()))


def _assigned(x: Tensor, h: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest centre of each point, and its distance."""
    members = []
    for part, weight in zip(*(t.split(max(1, MOST_DISTANCES // len(centres))) for t in (x, h)), strict=True):
        members.append((weight @ centres.square().T - 2 * (weight * part) @ centres.T).argmin(1))
    found = torch.cat(members)
    return found, (h * (x - centres[found]).square()).sum(1)
