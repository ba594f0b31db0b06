"""`ensemble` draws integer models from a posterior whose total cost keeps a budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from probq import cost as costs
from probq.cost.budget import Budget, Budgets, budgets
from probq.decisions.allocation.conditional_sampling import conditional_draws
from probq.decisions.allocation.problem import Problem
from probq.decisions.assignment import Assignment
from probq.decisions.constrained_posterior import constrained_posterior
from probq.decisions.draw_warnings import count_untuned, warn_of_draws, warn_untuned
from probq.decisions.widths import format_widths, widths_are_fixed
from probq.decisions.within_budget import mode, sample
from probq.integer.ensemble import Ensemble
from probq.integer.lowering.lower import lower
from probq.likelihoods import as_network_likelihood
from probq.network.program.decided_codes import decided_codes
from probq.network.program.program import check_posterior
from probq.network.quantized.quantized import Quantized
from probq.utils.arguments import check_number, is_count
from probq.utils.errors import ProbqError
from probq.utils.numbers import format_number
from probq.utils.random_stream import Stream
from probq.utils.version import probq_version


def ensemble(q: Quantized, n: int, budget: Budgets = None, *, seed: int = 0) -> Ensemble:
    """Return the integer models of `n` draws from the posterior whose costs together keep a budget.

    The members are `n` independent draws given that `sum of costs <= limit`, exact: one joint draw, not draws of a
    share each, so that a wide member may stand beside narrow ones. With fixed widths (`q.at(...)`) the members differ
    in their codes only.

    `fit` ends by tuning the network at one choice of widths. A draw of other widths has weights that were tuned for
    another network than itself, and may be of no use. Draw codes alone, from `q.at(q.mode())`, best fitted on with
    `rounding=False`; or tune each member at its own widths, `probq.fit(q.at(a), ...)` for each `a` of `q.sample(n)`,
    and put `probq.Ensemble` together from what `probq.lower` makes of them.

    Args:
        q: a fitted network. A network fitted for `budget / n`, or fixed at `q.mode` of it, gives the best members.
        n: number of members.
        budget: limit on the cost of all members together, or several; by default what was last fitted for, if anything.
        seed: makes the draws reproducible.

    Warns:
        UserWarning: if the posterior was never fitted, or a member has other widths than the last fit tuned it at.

    Raises:
        ProbqError: if the cheapest `n` members cost more than the budget, or the network cannot be lowered.
    """
    check_posterior(q, "ensemble")
    check_number("seed", seed, 0)
    warn_of_draws(q)
    several = budgets(budget or q.budget)
    assignments = draw_members(q, n, several, seed)
    warn_untuned(count_untuned(q, assignments), n, "members", "probq.ensemble(q.at(q.mode()), ...)")
    cost = several[0].cost if several else costs.bops
    spent = [a.cost(cost) for a in assignments]
    likelihood = as_network_likelihood(q.likelihood)
    metadata: dict[str, Any] = {
        "cost": costs.name(cost),
        "costs": spent,
        "total": sum(spent),
        "limit": several[0].absolute(q.layers) if several else None,
        "temperature": q.temperature,
        "seed": seed,
        "versions": {"probq": probq_version()},
        **likelihood.metadata(),
    }
    return Ensemble([lower(q, a) for a in assignments], likelihood.noise_variance, metadata)


def draw_members(q: Quantized, n: int, budget: Budgets, seed: int) -> list[Assignment]:
    """Return `n` independent draws from the posterior given that their costs add up to at most the budget.

    Args:
        q: a quantized network.
        n: number of draws.
        budget: limit on the sum of their costs, or None.
        seed: makes them reproducible.

    Raises:
        ProbqError: if the cheapest `n` networks cost more.
    """
    if not is_count(n, 1):
        raise ProbqError(f"an ensemble takes a number of members, 1 or more, not {n!r}")
    several = budgets(budget)
    if not several or widths_are_fixed(q):
        for b in several:
            _check_total(n, mode(q, None).cost(b.cost), b.absolute(q.layers))
        return sample(q, n, None, seed)
    one, limits = _sums(q, several)
    for limit, least in zip(limits, one.cheapest, strict=True):
        _check_total(n, least, limit)
    generator = np.random.default_rng(seed)
    (choice,) = conditional_draws(repeat_problem(one, n), limits, 1, generator)
    result = []
    with Stream(int(generator.integers(2**62))).drawing():
        for k in range(n):
            own = choice[k * len(one.groups) : (k + 1) * len(one.groups)]
            widths = format_widths(q, one.widths(own))
            result.append(Assignment(widths, decided_codes(q, widths, draw=True), q.layers, one.value(own)[0]))
    return result


def _check_total(n: int, least: float, limit: float) -> None:
    """Raise unless `n` members, each of at least the given cost, keep a total."""
    if n * least > limit:
        most = int(limit / least)
        fewer = f"ask for {most} at most, " if most else ""
        raise ProbqError(
            f"{n} members cannot keep a total of {format_number(limit)}: one costs {format_number(least, up=True)} at "
            f"least; {fewer}raise the budget or add narrower rungs to the plan's ladders"
        )


def _sums(q: Quantized, several: tuple[Budget, ...]) -> tuple[Problem, np.ndarray]:
    """Return the discrete problem of one member, and the limits on sums over all members."""
    kinds = [costs.as_network_cost(b.cost) for b in several]
    if any(kind.limits_each_layer or kind.sees_pruned for kind in kinds):
        raise ProbqError("the members' costs are added up, so an ensemble takes costs that are sums over layers")
    found = constrained_posterior(q, several)
    return found.problem, found.limits


def repeat_problem(one: Problem, n: int) -> Problem:
    """Return the problem of `n` networks at once, with a copy of every group for each, so that limits hold for sums."""
    return replace(one, groups=one.groups * n, constant=one.constant * n, full=one.full * n)
