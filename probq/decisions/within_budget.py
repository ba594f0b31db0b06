"""Decisions lead from the posterior to one choice of widths and codes that keeps a limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from probq import cost as costs
from probq.cost.budget import Budgets, budgets, one_or_several
from probq.decisions.assignment import Assignment
from probq.decisions.constrained_posterior import constrain, constrained_posterior
from probq.decisions.measured_law import measured_laws
from probq.decisions.widths import (
    check_widths,
    fixed_by_decision,
    fixed_widths,
    format_widths,
    known_rungs,
    widths_are_fixed,
    widths_of_rungs,
)
from probq.network.program.decided_codes import decided_codes, rung_onehots
from probq.network.program.program import Program
from probq.utils.errors import ProbqError
from probq.utils.numbers import format_number
from probq.utils.random_stream import Stream


def shipped_assignment(q: Program, budget: Budgets) -> Assignment:
    """Return what ships: the widths that a fit tuned the network for under this budget, otherwise the mode."""
    rungs = known_rungs(q, budget)
    if rungs is None or widths_are_fixed(q):
        return mode(q, budget)
    return with_widths(q, widths_of_rungs(q, rungs), budget)


def with_widths(q: Program, widths: dict[str, Any], budget: Budgets) -> Assignment:
    """Return an assignment of given widths and their most probable codes."""
    discrete = constrained_posterior(q, budget)
    choice, gap = discrete.most_probable()
    best, greatest = format_widths(q, discrete.problem.widths(choice)), discrete.problem.value(choice)[0]
    log_prob = width_log_prob(q, widths)
    if all(np.array_equal(best[name], widths[name]) for name in best):
        log_prob = greatest  # the same sum, added up in one order
    gap = max(0.0, greatest + gap - log_prob)
    return Assignment(widths, decided_codes(q, widths), q.layers, log_prob, gap, **_limits(q, budget))


@torch.no_grad()
def width_log_prob(q: Program, widths: Mapping[str, Any]) -> float:
    """Return the log-probability in nats of a choice of widths, `-inf` where a fixed width differs.

    Args:
        q: the network.
        widths: as in `Assignment.widths`.

    Raises:
        ProbqError: if a width is missing, not on its ladder, or differs from that of a tied quantizer.
    """
    check_widths(q, widths)
    log_prob, chosen, measured = 0.0, rung_onehots(q, widths), measured_laws(q)
    for name, quantizer in q.named_sites():
        if quantizer.fixed is not None:
            log_probs = quantizer.probs().log()
        elif measured is not None:
            log_probs = torch.as_tensor(measured[name], device=q.device)
        else:
            log_probs = quantizer.widths().log_probs
        log_prob += float(log_probs.double()[chosen[name].bool()].sum())
    return log_prob


def mode(q: Program, budget: Budgets) -> Assignment:
    """Return the most probable widths within the budget, or all of several, and the most probable codes."""
    if widths_are_fixed(q):
        return _fixed(q, budget)
    discrete = constrained_posterior(q, budget)
    choice, gap = discrete.most_probable()
    widths = format_widths(q, discrete.problem.widths(choice))
    log_prob = discrete.problem.value(choice)[0]
    return Assignment(widths, decided_codes(q, widths), q.layers, log_prob, gap, **_limits(q, budget))


def check_budget_reachable(q: Program, budget: Budgets) -> None:
    """Raise unless some widths keep the budget, or all of several."""
    if fixed_by_decision(q):
        _fixed(q, budget)
    else:
        constrained_posterior(q, budget).check()


def _limits(q: Program, budget: Budgets) -> dict[str, Any]:
    """Return the fields of an assignment that say under which limits it was decided."""
    limits = tuple(b.absolute(q.layers) for b in budgets(budget))
    limit = limits if len(limits) > 1 else limits[0] if limits else None
    return {"limit": limit, "budget": one_or_several(budget)}


def sample(q: Program, n: int, budget: Budgets, seed: int | None) -> list[Assignment]:
    """Return draws of widths from the posterior given that they keep the budget, and of codes given the widths."""
    generator = np.random.default_rng(int(torch.randint(2**62, ())) if seed is None else seed)
    with Stream(int(generator.integers(2**62))).drawing():
        if widths_are_fixed(q):
            widths = _fixed(q, budget).widths
            return [Assignment(widths, decided_codes(q, widths, draw=True), q.layers) for _ in range(n)]
        discrete, limits = constrained_posterior(q, budget), _limits(q, budget)
        result = []
        for choice in discrete.draws(n, generator):
            drawn = format_widths(q, discrete.problem.widths(choice))
            log_prob = discrete.problem.value(choice)[0]
            result.append(Assignment(drawn, decided_codes(q, drawn, draw=True), q.layers, log_prob, **limits))
        return result


def probability_within(q: Program, budget: Budgets, draws: int | None = None, seed: int = 0) -> float:
    """Return `P(cost <= limit)` of a draw of widths from the gates, 0 or 1 where they are fixed.

    Args:
        q: the network.
        budget: the limit, or several that a draw must keep all.
        draws: where the cost takes too many values for an exact sum, the number of draws to estimate it from; by
            default 20,000, and at least 100 where very many gates would make that slow.
        seed: the seed of those draws.
    """
    if widths_are_fixed(q):
        widths = fixed_widths(q)
        return float(all(costs.total(q.layers, widths, b.cost) <= b.absolute(q.layers) for b in budgets(budget)))
    if draws is None:
        gates = sum(max(1, math.prod(quantizer.gates)) for _, quantizer in q.named_sites())
        draws = max(100, min(20000, 100_000_000 // gates))
    discrete = constrain(q, budgets(budget), strict=False)
    return 0.0 if discrete is None else discrete.probability(draws, seed)


def _fixed(q: Program, budget: Budgets) -> Assignment:
    widths = fixed_widths(q)
    for one in budgets(budget):
        cost, limit = costs.total(q.layers, widths, one.cost), one.absolute(q.layers)
        if cost > limit:
            raise ProbqError(
                f"the widths are fixed and cost {format_number(cost, up=True)} {costs.name(one.cost)}, above the "
                f"budget of {format_number(limit)}; decide again"
            )
    return Assignment(widths, decided_codes(q, widths), q.layers, **_limits(q, budget))
