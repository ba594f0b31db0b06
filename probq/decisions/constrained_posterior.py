"""A posterior over widths under all limits at once gives the most probable choice, draws, and probabilities.

A limit on a sum over layers is a row of the discrete problem. One on the largest layer bars rungs one by one. One on a
cost that knows pruned channels couples layers: it is checked on whole choices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from probq import cost as costs
from probq.cost.budget import Budget, Budgets, budgets
from probq.decisions.allocation.conditional_sampling import (
    conditional_draws,
    exact_probability_within,
    probability_within,
)
from probq.decisions.allocation.most_probable import check_reachable, most_probable
from probq.decisions.allocation.problem import Choice, Problem, make_problem
from probq.decisions.measured_law import measured_laws
from probq.network.program.program import Program
from probq.network.tracing.layer import Layer
from probq.utils.errors import ProbqError
from probq.utils.numbers import format_number

HALVINGS = 16  # of the limit that stands in for a coupled one
PROPOSALS = 64  # draws for each one wanted, at most, where a coupled limit rejects some


def width_problem(
    q: Program,
    cost: costs.Cost | Sequence[costs.Cost] = costs.bops,
    barred: Mapping[str, np.ndarray] | None = None,
    laws: Mapping[str, np.ndarray] | None = None,
) -> Problem:
    """Return the discrete problem of the gates of a network, or of other laws of its widths.

    Args:
        q: the network.
        cost: a cost that is a sum over layers, or several.
        barred: for some quantizers, the rungs that they must not take, bool `[B]`.
        laws: log-probabilities of rungs `[B]` that stand in for the gates'; all gates of a quantizer then count as one.
    """
    ladders = {name: quantizer.ladder for name, quantizer in q.named_quantizers()}
    log_probs = {}
    with torch.no_grad():
        for name, quantizer in q.named_sites():
            if laws is None:
                law = quantizer.widths().log_probs.double().cpu().numpy()
                law = law.reshape(-1, len(quantizer.ladder)) if quantizer.gates else law
            else:
                law = np.asarray(laws[name], dtype=float)
            log_probs[name] = np.where((barred or {}).get(name, False), -np.inf, law)
    return make_problem(q.layers, ladders, log_probs, cost, q.sites)


@dataclass(frozen=True)
class ConstrainedPosterior:
    """A constrained posterior is the discrete problem of the widths under limits.

    Attributes:
        problem: with a row for each cost.
        limits: the limits of each row, `[K]`.
        coupled: rows that stand in for a cost that knows pruned channels, with that cost and its limit.
        layers: the layers of the network.
    """

    problem: Problem
    limits: np.ndarray
    coupled: Mapping[int, tuple[costs.Cost, float]]
    layers: tuple[Layer, ...]

    def keeps(self, choice: Choice) -> bool:
        """Return whether a choice keeps the coupled limits."""
        widths = self.problem.widths(choice) if self.coupled else {}
        return all(costs.total(self.layers, widths, cost) <= limit for cost, limit in self.coupled.values())

    def most_probable(self) -> tuple[Choice, float]:
        """Return the most probable choice within all limits, and its gap in nats.

        Under a coupled limit it is the best one found for a stand-in, the cost without pruning, whose limit is searched
        for; the gap is then the distance to the best choice without that limit.

        Raises:
            ProbqError: if no choice keeps the limits.
        """
        free, gap = most_probable(self.problem, self.limits)
        if self.keeps(free):
            return free, gap
        bound, best = self.problem.value(free)[0] + gap, None
        low, high = 0.0, 1.0
        for share in (0.0, *[math.nan] * HALVINGS):
            share = (low + high) / 2 if math.isnan(share) else share
            try:
                choice, _ = most_probable(self.problem, self._stand_in(share))
            except ProbqError:  # other limits need more than this
                low = share
                continue
            low, high = (share, high) if self.keeps(choice) else (low, share)
            if self.keeps(choice) and (best is None or self.problem.value(choice)[0] > self.problem.value(best)[0]):
                best = choice
        if best is None:
            raise self._out_of_reach()
        return best, max(0.0, bound - self.problem.value(best)[0])

    def check(self) -> None:
        """Raise unless some choice keeps all limits."""
        check_reachable(self.problem, self.limits)
        if not self.keeps([group.cheapest(0) for group in self.problem.groups]) or len(self.limits) > len(self.coupled):
            self.most_probable()

    def _stand_in(self, share: float) -> np.ndarray:
        limits = self.limits.copy()
        for k in self.coupled:
            least = self.problem.cheapest[k]
            limits[k] = least + share * (self.problem.full[k] - least)
        return limits

    def _out_of_reach(self) -> ProbqError:
        narrowest = self.problem.widths([group.cheapest(min(self.coupled)) for group in self.problem.groups])
        least = {
            costs.name(cost): (limit, costs.total(self.layers, narrowest, cost))
            for cost, limit in self.coupled.values()
        }
        figures = " and ".join(
            f"{format_number(limit)} {n} (the narrowest rungs cost {format_number(x, up=True)})"
            for n, (limit, x) in least.items()
        )
        also = " together with the other budgets" if len(self.limits) > len(self.coupled) else ""
        return ProbqError(f"no widths were found that keep the budget of {figures}{also}; raise the budget")

    def draws(self, n: int, generator: np.random.Generator) -> list[Choice]:
        """Return independent, exact draws from the posterior given that all limits are kept.

        Raises:
            ProbqError: if no choice keeps the limits, or too few draws did.
        """
        if not self.coupled:
            return conditional_draws(self.problem, self.limits, n, generator)
        kept: list[Choice] = []
        for _ in range(PROPOSALS):
            kept += [c for c in conditional_draws(self.problem, self.limits, n, generator) if self.keeps(c)]
            if len(kept) >= n:
                return kept[:n]
        self.check()
        raise ProbqError(
            f"only {len(kept)} of {n} draws kept the limit; fit under it first, raise it a little, or ask for fewer"
        )

    def probability(self, draws: int, seed: int) -> float:
        """Return `P(all limits are kept)` of a draw, from `draws` draws where it cannot be summed exactly."""
        inside = probability_within(self.problem, self.limits, draws, seed)
        if not self.coupled or not inside:
            return inside
        number = max(100, min(draws, 2000))
        found = conditional_draws(self.problem, self.limits, number, np.random.default_rng(seed))
        return inside * float(np.mean([self.keeps(choice) for choice in found]))

    def exact_probability(self) -> float | None:
        """Return `P(all limits are kept)` of a draw, None where that is no sum over few costs."""
        return None if self.coupled else exact_probability_within(self.problem, self.limits)


def constrained_posterior(q: Program, budget: Budgets) -> ConstrainedPosterior:
    """Return the discrete problem of a network under a budget, or all of several.

    Where losses of choices were measured, its law is the one learned from these, else that of the gates.

    Raises:
        ProbqError: if a limit on the largest layer cannot be kept.
    """
    found = constrain(q, budgets(budget), laws=measured_laws(q))
    assert found is not None  # it raises otherwise
    return found


def constrain(
    q: Program, several: Sequence[Budget], strict: bool = True, laws: Mapping[str, np.ndarray] | None = None
) -> ConstrainedPosterior | None:
    """Return the discrete problem of a network under several budgets.

    Args:
        q: the network.
        several: the budgets; none for no limit.
        strict: whether to raise where a limit on the largest layer cannot be kept; else the result is None.
        laws: as in `width_problem`.

    Raises:
        ProbqError: as told; it names the layer.
    """
    wanted = [(costs.as_network_cost(b.cost).by_layers(), b.cost, b.absolute(q.layers)) for b in several]
    barred: dict[str, np.ndarray] = {}
    barring = [row for row in wanted if costs.as_network_cost(row[0]).limits_each_layer]
    for cost, _, limit in barring:
        if not _bar(q, cost, limit, barred, strict):
            return None
    rows = [row for row in wanted if not costs.as_network_cost(row[0]).limits_each_layer]
    rows = rows or [(costs.bops, costs.bops, math.inf)]
    discrete = replace(
        width_problem(q, [cost for cost, _, _ in rows], barred, laws),
        names=tuple(costs.name(cost) for _, cost, _ in rows),
        within=_within(barring),
    )
    coupled = {k: (cost, limit) for k, (_, cost, limit) in enumerate(rows) if q.cost_tables(cost).reads}
    free = 2 * discrete.full + 1
    limits = np.array([free[k] if k in coupled or math.isinf(row[2]) else row[2] for k, row in enumerate(rows)])
    return ConstrainedPosterior(discrete, limits, coupled, q.layers)


def _within(rows: Sequence[tuple[costs.Cost, costs.Cost, float]]) -> str:
    """Return the limits on a largest layer, for messages."""
    largest = [f"{format_number(limit)} {costs.name(cost)}" for cost, _, limit in rows]
    return " within " + " and ".join(largest) if largest else ""


def costs_by_input(q: Program, cost: costs.Cost) -> list[tuple[Layer, str, Tensor]]:
    """Return each layer, the name of what has its input's width ("" if nothing has), and its cost on each rung of that.

    Args:
        q: the network.
        cost: the cost of the input alone.
    """
    tables = q.cost_tables(cost)
    found = [layer.input if layer.input is not None and layer.input in q else None for layer, _ in tables]
    return [
        (layer, tables.site(name) if name else "", table.max(0).values.double().cpu())
        for name, (layer, table) in zip(found, tables, strict=True)
    ]


def _bar(q: Program, cost: costs.Cost, limit: float, barred: dict[str, np.ndarray], strict: bool) -> bool:
    """Bar every rung at which some layer alone exceeds the limit; False where that leaves a layer none."""
    for layer, site, of_rungs in costs_by_input(q, cost):
        above = (of_rungs > limit).numpy()
        if site:
            barred[site] = above = above | barred.get(site, False)
        if above.all():
            if not strict:
                return False
            least = float(of_rungs.min())
            raise ProbqError(
                f"the budget of {format_number(limit)} {costs.name(cost)} cannot be reached: layer {layer.name} alone "
                f"costs {format_number(least, up=True)} at its narrowest input; raise the budget or add narrower rungs "
                "to its ladder"
            )
    return True
