"""Solvers on the discrete problem: the most probable choice under a limit, and exact conditional draws."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.special import softmax

from probq.choices import Group, Problem
from probq.errors import ProbqError

Choice: TypeAlias = list[tuple[int, np.ndarray]]
BATCH = 2048
MOST_NUMBERS = 4_000_000
MOST_BATCHES = 2000
MOST_CUTS = 100


def most_probable(problem: Problem, limit: float) -> tuple[Choice, float]:
    """The choice of greatest log-probability with `cost <= limit`, and its proven gap in nats.

    With one gate for each tensor it is an integer programme, solved to optimality (gap 0). With many gates it is the
    best choice found along the Lagrangian dual, and the gap is the distance to the dual bound.

    Args:
        problem: the discrete problem.
        limit: the greatest allowed cost.

    Raises:
        ProbqError: if no choice keeps the limit.
    """
    limit = problem.inside(limit)
    if all(group.gates == 1 for group in problem.groups):
        return _integer_programme(problem, limit), 0.0
    return _lagrangian(problem, limit)


def _integer_programme(problem: Problem, limit: float) -> Choice:
    return next(_in_order(problem, limit), None) or _cheapest(problem)


def most_probable_first(problem: Problem, limit: float) -> Iterator[Choice]:
    """All choices with `cost <= limit`, in the order of falling log-probability, each from an integer programme.

    Args:
        problem: the discrete problem, with one gate for each tensor.
        limit: the greatest allowed cost.

    Raises:
        ProbqError: if no choice keeps the limit.

    Source: K. G. Murty, 1968, "An Algorithm for Ranking all the Assignments in Order of Increasing Cost" (exclusion of
    what was found).
    """
    return _in_order(problem, problem.inside(limit))


def _in_order(problem: Problem, limit: float) -> Iterator[Choice]:
    values = [g.log_inputs[:, None] + g.log_gates for g in problem.groups]
    gain, price = np.concatenate([v.ravel() for v in values]), np.concatenate([g.cost.ravel() for g in problem.groups])
    owner = np.concatenate([np.full(v.size, k) for k, v in enumerate(values)])
    one_each = (np.arange(len(values))[:, None] == owner[None]).astype(float)
    room = limit - problem.constant
    least = np.array([g.cost.min() for g in problem.groups])
    # what no choice of the others can make room for is out; the solver's tolerance would let some of it pass
    possible = price - least[owner] <= room - least.sum() + 1e-9 * abs(room)
    unit = max(room, float(price.max()) * 1e-9, 1e-300)
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(price[None] / unit, ub=room / unit)]
    useless = 0
    while useless < MOST_CUTS:
        result = milp(
            -gain,
            constraints=constraints,
            integrality=np.ones(len(gain)),
            bounds=Bounds(0, possible),
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:
            return
        choice = _read(result.x, values)
        if problem.value(choice)[1] <= limit:
            yield choice
        else:
            useless += 1
        constraints.append(LinearConstraint((result.x > 0.5)[None].astype(float), ub=len(values) - 1))  # not this one


def _read(x: np.ndarray, values: list[np.ndarray]) -> Choice:
    choice, first = [], 0
    for value in values:
        best = int(x[first : first + value.size].argmax())
        first += value.size
        choice.append((best // value.shape[1], np.array([best % value.shape[1]])))
    return choice


def _cheapest(problem: Problem) -> Choice:
    choice = []
    for g in problem.groups:
        t = int(g.cost.min(1).argmin())
        choice.append((t, np.full(g.gates, int(g.cost[t].argmin()))))
    return choice


def _priced(problem: Problem, price: float) -> tuple[Choice, float]:
    """The choice that maximises `log-probability - price * cost`, and that maximum."""
    choice, total = [], -price * problem.constant
    for g in problem.groups:
        scores = g.log_gates[None] - price * g.cost[:, None, :] / g.gates
        of_combination = g.log_inputs + scores.max(2).sum(1)
        t = int(of_combination.argmax())
        choice.append((t, scores[t].argmax(1)))
        total += float(of_combination[t])
    return choice, total


def _lagrangian(problem: Problem, limit: float) -> tuple[Choice, float]:
    choice, bound = _priced(problem, 0.0)
    if problem.value(choice)[1] <= limit:
        return choice, 0.0
    unit = 1.0 / max(limit, 1e-12)
    best, low, high = _cheapest(problem), 0.0, unit
    while problem.value(_priced(problem, high)[0])[1] > limit and high < 1e12 * unit:
        high *= 4
    for _ in range(100):
        price = (low + high) / 2
        choice, value = _priced(problem, price)
        bound = min(bound, value + price * limit)
        log_prob, cost = problem.value(choice)
        low, high = (price, high) if cost > limit else (low, price)
        if cost <= limit and log_prob > problem.value(best)[0]:
            best = choice
    best = _filled(problem, best, limit)
    return best, max(0.0, bound - problem.value(best)[0])


def _filled(problem: Problem, choice: Choice, limit: float) -> Choice:
    """Spend what is left: single gates moved to more probable rungs, best log-probability for the cost first."""
    room = limit - problem.value(choice)[1]
    result = []
    for group, (t, rungs) in zip(problem.groups, choice, strict=True):
        rungs = rungs.copy()
        step = group.cost[t] / group.gates
        current = group.log_gates[np.arange(group.gates), rungs]
        gain, price = group.log_gates - current[:, None], step[None] - step[rungs][:, None]
        for index in np.argsort(-(gain / np.maximum(price, 1e-300)), axis=None):
            gate, rung = np.unravel_index(index, gain.shape)
            before = rungs[gate]
            better = group.log_gates[gate, rung] > group.log_gates[gate, before]
            needed = step[rung] - step[before]
            if better and needed <= room * (1 - 1e-9):
                rungs[gate], room = rung, room - needed
        result.append((t, rungs))
    return result if problem.value(result)[1] <= limit else choice


def conditional_draws(problem: Problem, limit: float, n: int, generator: np.random.Generator) -> list[Choice]:
    """Independent draws from the posterior over widths given `cost <= limit`, exact.

    Proposals come from the posterior tilted by `exp(-price * cost)`, which still factorises; a feasible one is kept
    with probability `exp(price * (cost - limit))`. The price with `E[cost] = limit` keeps the most.

    Raises:
        ProbqError: if no choice keeps the limit, or fewer than `n` proposals were kept.
    """
    limit = problem.inside(limit)
    price = _price(problem, limit)
    kept: list[Choice] = []
    rows = max(1, min(BATCH, MOST_NUMBERS // sum(group.gates for group in problem.groups)))
    for _ in range(MOST_BATCHES):
        parts = [_propose(group, price, rows, generator) for group in problem.groups]
        cost = problem.constant + sum(part[2] for part in parts)
        keep = (cost <= limit) & (np.log(generator.random(rows)) <= price * (cost - limit))
        for row in np.flatnonzero(keep):
            choice = [(int(t[row]), rungs[row]) for t, rungs, _ in parts]
            if problem.value(choice)[1] <= limit:
                kept.append(choice)
            if len(kept) == n:
                return kept
    raise ProbqError(f"only {len(kept)} of {n} draws kept the limit; raise the budget a little or ask for fewer draws")


def _mean_cost(problem: Problem, price: float) -> float:
    total = problem.constant
    for group in problem.groups:
        gates, combinations = group.tilted(price)
        of_gates = (softmax(gates, axis=2) * group.cost[:, None, :] / group.gates).sum((1, 2))
        total += float(softmax(combinations) @ of_gates)
    return total


def _price(problem: Problem, limit: float) -> float:
    if _mean_cost(problem, 0.0) <= limit:
        return 0.0
    unit = 1.0 / max(limit, 1e-12)
    low, high = 0.0, unit
    while _mean_cost(problem, high) > limit and high < 1e6 * unit:
        high *= 4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _mean_cost(problem, middle) > limit else (low, middle)
    return high


def _propose(
    group: Group, price: float, n: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    gates, combinations = group.tilted(price)
    t = _draw(softmax(combinations)[None].repeat(n, 0), generator)
    cumulative = softmax(gates, axis=2).cumsum(2)
    rungs = np.empty((n, group.gates), dtype=np.int64)
    for value in np.unique(t):
        rows = np.flatnonzero(t == value)
        u = generator.random((len(rows), group.gates, 1))
        rungs[rows] = (u > cumulative[value][None]).sum(2).clip(max=group.cost.shape[1] - 1)
    cost = group.cost[t[:, None], rungs].sum(1) / group.gates
    return t, rungs, cost


def _draw(probs: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    u = generator.random((len(probs), 1))
    return (u > probs.cumsum(1)).sum(1).clip(max=probs.shape[1] - 1)


def probability_within(problem: Problem, limit: float, draws: int = 20000, seed: int = 0) -> float:
    """`P(cost <= limit)` under the posterior: exact where the cost takes few values, else from `draws` draws."""
    costs, probs = np.array([problem.constant]), np.array([1.0])
    for group in problem.groups:
        if group.gates > 1 or len(costs) * group.cost.size > 4_000_000:
            return _drawn_probability(problem, limit, draws, seed)
        weights = np.exp(group.log_inputs[:, None] + group.log_gates).ravel()
        costs, inverse = np.unique((costs[:, None] + group.cost.ravel()[None]).ravel(), return_inverse=True)
        probs = np.bincount(inverse, (probs[:, None] * weights[None]).ravel())
    return float(min(1.0, probs[costs <= limit].sum()))


def _drawn_probability(problem: Problem, limit: float, draws: int, seed: int) -> float:
    generator = np.random.default_rng(seed)
    rows = max(1, min(draws, MOST_NUMBERS // sum(group.gates for group in problem.groups)))
    within = 0
    for first in range(0, draws, rows):
        part = min(rows, draws - first)
        cost = problem.constant + sum(_propose(group, 0.0, part, generator)[2] for group in problem.groups)
        within += int(np.sum(cost <= limit))
    return within / draws
