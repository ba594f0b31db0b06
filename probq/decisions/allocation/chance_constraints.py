"""Chance constraints say how likely a draw of widths keeps a limit, with gradients to the gates."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from probq.decisions.allocation.problem import Group, Problem

MOST_VALUES = 20_000
BINS = 4096
TINY = 1e-12
FLOOR = 0.02  # of the sd, in units of the limit


class ChanceConstraint(ABC):
    """A chance constraint is `P_q(cost <= limit) >= p` as a gap, 0 or less where it holds.

    Args:
        p: the probability to be held.
    """

    def __init__(self, p: float) -> None:
        self.p = p

    @abstractmethod
    def gap(self, probs: Mapping[str, Tensor], limit: float) -> Tensor:
        """Return the gap, a float64 scalar with gradients.

        Args:
            probs: probability of each rung of every quantizer, `[*gates, B]`.
            limit: the greatest allowed cost.
        """

    def level(self, probs: Mapping[str, Tensor]) -> Tensor:
        """Return the limit at which the gap is about 0, the mean plus `tails` standard deviations."""
        mean, variance = self.moments(probs)
        return mean + self.tails * (variance + TINY).sqrt()

    @abstractmethod
    def moments(self, probs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the exact mean and variance of the cost."""

    @property
    @abstractmethod
    def tails(self) -> float:
        """Return the standard deviations between the mean and the p-quantile, or a bound of them."""


class ByProbability(ChanceConstraint):
    """This constraint knows a probability `P`; its gap is `s (logit(p) - logit(P)) / limit`, `s = sqrt(3) / pi sd`.

    For a logistic law this is what lies between the limit and the cost's p-quantile, relative to the limit; the sign is
    right for any law. The logit keeps a slope where `P` is nearly 0. The sd counts as a constant, `FLOOR` at least.
    """

    @abstractmethod
    def probabilities(self, probs: Mapping[str, Tensor], limit: float) -> tuple[Tensor, Tensor]:
        """Return `P(cost <= limit)` and its complement to 1."""

    def gap(self, probs: Mapping[str, Tensor], limit: float) -> Tensor:
        """Return the gap."""
        within, over = self.probabilities(probs, limit)
        logit = torch.log(within.clamp_min(TINY)) - torch.log(over.clamp_min(TINY))
        with torch.no_grad():
            sd = (self.moments(probs)[1].sqrt() / limit).clamp_min(FLOOR)
        return sd * (self.tails - math.sqrt(3) / math.pi * logit)

    @property
    def tails(self) -> float:
        """Return the standard deviations between the mean and the p-quantile of a logistic law."""
        return math.sqrt(3) / math.pi * math.log(self.p / (1 - self.p))


class SumOfCosts(ChanceConstraint):
    """This constraint limits a cost that is a sum over layers.

    Args:
        problem: the discrete problem of a network; its probabilities are not used, they come with each call.
        p: as in `ChanceConstraint`.
    """

    def __init__(self, problem: Problem, p: float) -> None:
        super().__init__(p)
        self.problem = problem

    def moments(self, probs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mean and variance of the sum."""
        return moments(self.problem, probs)


class ExactDistribution(SumOfCosts, ByProbability):
    """This constraint has the cost's exact distribution.

    It suits one width a tensor, where the cost has few values: the distribution is a convolution of groups.
    """

    def __init__(self, problem: Problem, p: float) -> None:
        super().__init__(problem, p)
        costs, self.places = problem.constant[:1], []
        for group in problem.groups:
            every = costs[:, None] + _costs(group, problem)[None]
            costs, place = np.unique(every.ravel(), return_inverse=True)
            self.places.append(torch.from_numpy(place))
        self.costs = torch.from_numpy(costs)

    def probabilities(self, probs: Mapping[str, Tensor], limit: float) -> tuple[Tensor, Tensor]:
        """Return the sums of the distribution within the limit and beyond it."""
        law = torch.ones(1, dtype=torch.float64)
        for group, place in zip(self.problem.groups, self.places, strict=True):
            pairs = (law[:, None] * _pairs(group, probs)[None]).reshape(-1)
            law = pairs.new_zeros(int(place.max()) + 1).index_add(0, place, pairs)
        within = self.costs <= limit
        return law[within].sum(), law[~within].sum()


class BinnedDistribution(SumOfCosts, ByProbability):
    """This constraint has a lower bound of `P(cost <= limit)`, for a cost of one width a tensor with too many values.

    Each group's cost above its least one is rounded up to a multiple of 1/4096 of the room above the cheapest choice,
    so a choice counts as within only if it is.
    """

    def probabilities(self, probs: Mapping[str, Tensor], limit: float) -> tuple[Tensor, Tensor]:
        """Return the bound and its complement."""
        unit = max(limit - float(self.problem.cheapest[0]), 0.0) / BINS
        law = torch.zeros(BINS + 1, dtype=torch.float64)
        law[0] = 1
        cells = torch.arange(BINS + 1)
        for group in self.problem.groups:
            costs = _costs(group, self.problem)
            above = costs - costs.min()
            up = np.where(above > 0, np.ceil(above / max(unit, TINY)), 0)
            shifts, place = np.unique(np.minimum(up, BINS + 1).astype(np.int64), return_inverse=True)
            pairs = _pairs(group, probs)
            weight = pairs.new_zeros(len(shifts)).index_add(0, torch.from_numpy(place.ravel()), pairs)
            source = cells[None] - torch.from_numpy(shifts)[:, None]
            law = weight @ (law[source.clamp_min(0)] * (source >= 0))
        within = law.sum()
        return within, 1 - within


class LargestCost(ByProbability):
    """This is the largest layer's cost exactly: `P(max <= v) = prod over widths of P(their layers <= v)`.

    Args:
        layers: cost of each layer on every rung of its input, and the name of what has that width, "" if nothing has.
        p: as in `ChanceConstraint`.
    """

    def __init__(self, layers: Sequence[tuple[str, Tensor]], p: float) -> None:
        super().__init__(p)
        most: dict[str, Tensor] = {}
        for name, costs in layers:
            most[name] = torch.maximum(costs, most[name]) if name in most else costs
        values = torch.cat(list(most.values())).unique()
        self.values = values[values >= max(float(costs.min()) for costs in most.values())]
        self.most = {name: costs for name, costs in most.items() if name}

    def probabilities(self, probs: Mapping[str, Tensor], limit: float) -> tuple[Tensor, Tensor]:
        """Return the product and its complement; nothing is within a limit that some layer always exceeds."""
        within = torch.tensor(float(limit >= float(self.values[0])), dtype=torch.float64)
        for name, costs in self.most.items():
            within = within * (probs[name].double().cpu() * (costs <= limit)).sum()
        return within, 1 - within

    def moments(self, probs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the mean and variance of the largest cost, from all its values."""
        below = torch.stack([self.probabilities(probs, float(value))[0] for value in self.values])
        law = torch.diff(below, prepend=below.new_zeros(1))
        mean = law @ self.values
        return mean, (law @ (self.values - mean) ** 2).clamp_min(0)


class CantelliBound(SumOfCosts):
    """Cantelli's one-sided bound needs only the cost's mean and variance, and so suits widths of channels or weights.

        mean + sqrt(p / (1 - p)) sd <= limit   implies   P(cost <= limit) >= p,

    for any law, so it asks for more than needed; the gap is the logarithm of the left side over the limit. Source:
    F. P. Cantelli, 1928, "Sui confini della probabilità".
    """

    def gap(self, probs: Mapping[str, Tensor], limit: float) -> Tensor:
        """Return the gap."""
        return torch.log(self.level(probs) / limit)

    @property
    def tails(self) -> float:
        """Return the standard deviations between the mean and the bound of the p-quantile."""
        return math.sqrt(self.p / (1 - self.p))


def moments(problem: Problem, probs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the exact mean and variance of the cost; arguments are those of `ChanceConstraint`."""
    means, variances = [torch.tensor(float(problem.constant[0]), dtype=torch.float64)], []
    for group in problem.groups:
        of_shared, of_leaves = _laws(group, probs)
        mean, inside = torch.from_numpy(group.own[0].copy()), torch.zeros(len(of_shared), dtype=torch.float64)
        for v, law in enumerate(of_leaves):
            cost = torch.from_numpy(group.cost[0, :, v, : law.shape[1]].copy())
            first, second = law @ cost.T, law @ (cost**2).T
            mean = mean + first.mean(0)
            inside = inside + (second - first**2).sum(0) / len(law) ** 2
        total = of_shared @ mean
        means.append(total)
        variances.append(of_shared @ (inside + (mean - total) ** 2))
    return torch.stack(means).sum(), torch.stack(variances).sum().clamp_min(0)


def chance_constraint(problem: Problem, p: float) -> ChanceConstraint:
    """Return the sharpest of the three that a network allows: exact, binned, or by Cantelli's bound."""
    if any((group.counts > 1).any() for group in problem.groups):
        return CantelliBound(problem, p)
    values = 1
    for group in problem.groups:
        values *= len(np.unique(_costs(group, problem)))
    return ExactDistribution(problem, p) if values <= MOST_VALUES else BinnedDistribution(problem, p)


def _laws(group: Group, probs: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the probabilities of shared combinations, `[T]`, and of the rungs of each leaf's gates, `[n, B]`."""
    of_shared = torch.ones(len(group.combinations), dtype=torch.float64)
    for column, name in enumerate(group.shared):
        of_shared = of_shared * probs[name].double().cpu()[torch.from_numpy(group.combinations[:, column].copy())]
    leaves = zip(group.leaves, group.counts, strict=True)
    return of_shared, [probs[name].double().cpu().reshape(int(n), -1) for name, n in leaves]


def _costs(group: Group, problem: Problem) -> np.ndarray:
    """Return the cost of each combination of the shared widths with each of the leaves' rungs, `[n]`."""
    costs = group.own[0][:, None]
    for v, name in enumerate(group.leaves):
        own = group.cost[0, :, v, None, : len(problem.ladders[name])]
        costs = (costs[..., None] + own).reshape(len(costs), -1)
    return costs.ravel()


def _pairs(group: Group, probs: Mapping[str, Tensor]) -> Tensor:
    """Return the probability of each combination of `_costs`, `[n]`."""
    of_shared, of_leaves = _laws(group, probs)
    result = of_shared[:, None]
    for law in of_leaves:
        result = (result[..., None] * law[0]).reshape(len(result), -1)
    return result.reshape(-1)
