"""A budget on one network: how far the posterior exceeds it, and how it is made to hold where it promises a chance."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from probq import cost as costs
from probq.cost.budget import Budget
from probq.decisions.allocation.chance_constraints import ChanceConstraint, LargestCost, chance_constraint
from probq.decisions.constrained_posterior import costs_by_input, width_problem
from probq.decisions.widths import widths_are_fixed
from probq.network.program.program import Program

MARGIN = 1e-4  # of the gap, for rounding in float32
MOST_REPAIRS = 300


class BudgetConstraint:
    """A constraint binds one budget to one network.

    Args:
        q: the network.
        budget: the budget.

    Attributes:
        limit: in the cost's unit.
        full: cost of the 32-bit network.
    """

    def __init__(self, q: Program, budget: Budget) -> None:
        self.q, self.budget = q, budget
        self.limit, self.full = budget.absolute(q.layers), budget.full(q.layers)
        self.tables = q.cost_tables(budget.cost)
        p = budget.probability
        self.chance = None if p is None or widths_are_fixed(q) else _chance(q, budget.cost, p)

    def expected(self, probs: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return `E[cost]`, with gradients.

        Args:
            probs: the probability of every rung of every quantizer, where it is known already.
        """
        return self.q.expected_cost(self.tables, probs)

    @torch.no_grad()
    def start(self) -> float:
        """Where the ramp of the limit begins: `E[cost]`, or what the chance is about kept at."""
        return float(self.expected() if self.chance is None else self.chance.level(self._probs()))

    def gap(self, expected: Tensor, limit: float) -> Tensor:
        """Return how far a limit is exceeded: `log(E[cost] / limit)`, or the gap of the chance.

        Args:
            expected: `E[cost]` under the posterior.
            limit: in force.
        """
        if self.chance is not None:
            return self.chance.gap(self._probs(), limit)
        return torch.log(expected / limit)

    @torch.no_grad()
    def hard(self) -> float:
        """Cost of each quantizer's most probable width, whether or not it keeps the limit."""
        modes = {name: F.one_hot(p.argmax(-1), p.shape[-1]).to(p) for name, p in self._probs().items()}
        return float(self.q.expected_cost(self.tables, modes))

    def _probs(self) -> dict[str, Tensor]:
        return {name: quantizer.probs() for name, quantizer in self.q.named_quantizers()}


def _chance(q: Program, cost: costs.Cost, p: float) -> ChanceConstraint:
    """The chance that a cost keeps a limit; with pruned channels the bound that counts them as if they were there."""
    kind = costs.as_network_cost(cost)
    if kind.limits_each_layer:
        return LargestCost([(site, of_rungs) for _, site, of_rungs in costs_by_input(q, cost)], p)
    return chance_constraint(width_problem(q, kind.by_layers()), p)


def enforce_chance(q: Program, constraints: Sequence[BudgetConstraint]) -> None:
    """Move the gates down the gaps of the budgets that promise a chance, just until every promise is kept.

    A bound by mean and spread can be trapped where the mean is too high and every gate is nearly sure, because the
    first step down adds more spread than it takes of the mean; then they move down the mean alone, from the start.

    Warns:
        UserWarning: if one cannot be kept.
    """
    bound = [c for c in constraints if c.chance is not None]
    gates = [quantizer.logits for _, quantizer in q.named_quantizers() if quantizer.free]
    start = [gate.detach().clone() for gate in gates]
    for trapped in (False, True):
        if _lowered(bound, gates, trapped):
            return
        if not trapped:
            with torch.no_grad():
                for gate, before in zip(gates, start, strict=True):
                    gate.copy_(before)
    warnings.warn("the search could not make its widths keep the limit with the budget's probability", stacklevel=2)


def _lowered(bound: Sequence[BudgetConstraint], gates: Sequence[Tensor], by_mean: bool) -> bool:
    """Move the gates down the gaps, or the means, of the budgets not kept; whether all are in the end."""
    for attempt in range(MOST_REPAIRS):
        means = [c.expected() for c in bound]
        gaps = [c.gap(mean, c.limit) for c, mean in zip(bound, means, strict=True)]
        if all(float(gap.detach()) <= -MARGIN for gap in gaps):
            return True
        if by_mean:
            parts = [m.log() for m, gap in zip(means, gaps, strict=True) if float(gap.detach()) > -MARGIN]
        else:
            parts = [(gap + MARGIN).clamp_min(0) for gap in gaps]
        slopes = torch.autograd.grad(torch.stack(parts).sum(), gates, allow_unused=True)
        steepest = max(float(slope.abs().max()) for slope in slopes if slope is not None)
        with torch.no_grad():
            for gate, slope in zip(gates, slopes, strict=True):
                if slope is not None:
                    gate.sub_(slope, alpha=0.01 * 1.03**attempt / max(steepest, 1e-30))
    return False
