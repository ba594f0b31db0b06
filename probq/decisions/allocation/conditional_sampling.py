"""This module draws widths exactly from the posterior given that they keep limits, and says how probable that is."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp, softmax

from probq.decisions.allocation.most_probable import ROUNDS, Limits, check_reachable, replace_price
from probq.decisions.allocation.problem import Choice, Group, Problem
from probq.utils.errors import ProbqError

BATCH = 2048
MOST_NUMBERS = 4_000_000
MOST_BATCHES = 2000


def conditional_draws(problem: Problem, limit: Limits, n: int, generator: np.random.Generator) -> list[Choice]:
    """Return independent, exact draws from the posterior over widths given that every limit is kept.

    Proposals come from the posterior tilted by `exp(-prices * costs)`, which still factorises; a feasible one is kept
    with probability `exp(prices * (costs - limits))`. The prices with `E[cost] = limit` keep the most.

    Raises:
        ProbqError: if no choice keeps the limits, or fewer than `n` proposals were kept.
    """
    limits, _ = check_reachable(problem, limit)
    prices = _prices(problem, limits)
    kept: list[Choice] = []
    rows = max(1, min(BATCH, MOST_NUMBERS // max(1, sum(group.gates for group in problem.groups))))
    for _ in range(MOST_BATCHES):
        parts = [_propose(group, prices, rows, generator) for group in problem.groups]
        cost = problem.constant + sum(part[2] for part in parts)
        keep = (cost <= limits * (1 + 1e-12)).all(1) & (np.log(generator.random(rows)) <= (cost - limits) @ prices)
        for row in np.flatnonzero(keep):
            choice = [(int(t[row]), rungs[row]) for t, rungs, _ in parts]
            if problem.keeps(choice, limits):  # sums in another order may differ in the last digit
                kept.append(choice)
            if len(kept) == n:
                return kept
    raise ProbqError(f"only {len(kept)} of {n} draws kept the limit; raise the budget a little or ask for fewer draws")


def _mean_costs(problem: Problem, prices: np.ndarray) -> np.ndarray:
    total = problem.constant
    for group in problem.groups:
        gates, combinations = group.tilted(prices)
        of_gates = (softmax(gates, axis=2) * group.shares[:, :, group.owner]).sum((2, 3))
        total = total + (group.own + of_gates) @ softmax(combinations)
    return total


def _prices(problem: Problem, limits: np.ndarray) -> np.ndarray:
    """Return the prices at which each mean cost is its limit, or 0 where it is below.

    They are found one after the other, in rounds.
    """
    prices = np.zeros(len(limits))
    for k in list(range(len(limits))) * (1 if len(limits) == 1 else ROUNDS):
        prices = replace_price(prices, k, 0.0)
        if _mean_costs(problem, prices)[k] <= limits[k]:
            continue
        unit = 1.0 / max(limits[k], 1e-12)
        low, high = 0.0, unit
        while _mean_costs(problem, replace_price(prices, k, high))[k] > limits[k] and high < 1e6 * unit:
            high *= 4
        for _ in range(60 if len(limits) == 1 else 30):
            middle = (low + high) / 2
            above = _mean_costs(problem, replace_price(prices, k, middle))[k] > limits[k]
            low, high = (middle, high) if above else (low, middle)
        prices[k] = high
    return prices


def _propose(
    group: Group, prices: np.ndarray, n: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the combinations `[n]`, rungs `[n, G]` and costs `[n, K]` of `n` draws."""
    gates, combinations = group.tilted(prices)
    t = _draw(softmax(combinations)[None].repeat(n, 0), generator)
    cumulative = softmax(gates, axis=2).cumsum(2)
    last = gates.shape[2] - 1 - np.isfinite(group.log_gates)[:, ::-1].argmax(1)
    rungs = np.empty((n, group.gates), dtype=np.int64)
    for value in np.unique(t):
        rows = np.flatnonzero(t == value)
        u = generator.random((len(rows), group.gates))
        above = sum((u > ends).astype(np.int8) for ends in cumulative[value].T)  # a rung at a time needs less memory
        rungs[rows] = np.minimum(above, last)
    owner = group.owner
    costs = [own[t] + cost[t[:, None], owner, rungs].sum(1) for own, cost in zip(group.own, group.shares, strict=True)]
    return t, rungs, np.stack(costs, 1)


def _draw(probs: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    u = generator.random((len(probs), 1))
    return (u > probs.cumsum(1)).sum(1).clip(max=probs.shape[1] - 1)


def probability_within(problem: Problem, limit: Limits, draws: int = 20000, seed: int = 0) -> float:
    """Return `P(cost <= limit)` under the posterior: exact where the costs take few values, else from `draws` draws."""
    limits = np.broadcast_to(np.asarray(limit, float), problem.full.shape)
    exact = exact_probability_within(problem, limits)
    return _drawn_probability(problem, limits, draws, seed) if exact is None else exact


def exact_probability_within(problem: Problem, limits: np.ndarray) -> float | None:
    """Return `P(cost <= limits)` under the posterior, None where the costs take too many values to sum over."""
    every = [_states(group) for group in problem.groups]
    if any(states is None for states in every):
        return None
    states = [found for found in every if found is not None]
    least, most = (_behind([end(costs, 0) for costs, _ in states], limits) for end in (np.min, np.max))
    mass = np.cumprod([1.0, *(of_group.sum() for _, of_group in states[:0:-1])])[::-1]  # below 1 where rungs are barred
    costs, probs, sure = problem.constant[None], np.array([1.0]), 0.0
    slack = 1e-9 * np.abs(limits)
    for place, (own_costs, own_probs) in enumerate(states):
        if len(costs) * len(own_probs) * len(limits) ** 2 > 4_000_000:
            return None
        costs, probs = _together(costs, probs, own_costs, own_probs)
        inside = (costs + most[place] <= limits - slack).all(1)  # whatever the rest takes
        sure += float(probs[inside].sum()) * mass[place]
        open_ = ~inside & (costs + least[place] <= limits + slack).all(1)
        costs, probs = costs[open_], probs[open_]
    return float(min(1.0, sure + probs[(costs <= limits).all(1)].sum()))


def _behind(ends: list[np.ndarray], limits: np.ndarray) -> list[np.ndarray]:
    """Return for each group the sum of what all later ones take at least, or at most."""
    sums = [np.zeros(len(limits))]
    for end in reversed(ends[1:]):
        sums.append(sums[-1] + end)
    return sums[::-1]


def _together(
    costs: np.ndarray, probs: np.ndarray, own_costs: np.ndarray, own_probs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the costs `[N, K]` of two independent parts together, each value once, and their probabilities `[N]`."""
    every = (costs[:, None] + own_costs[None]).reshape(-1, costs.shape[1])
    if every.shape[1] == 1:
        unique, inverse = np.unique(every[:, 0], return_inverse=True)
        result = unique[:, None]
    else:
        result, inverse = np.unique(every, axis=0, return_inverse=True)
    return result, np.bincount(inverse.reshape(-1), (probs[:, None] * own_probs[None]).ravel(), len(result))


def _states(group: Group) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the costs `[n, K]` and probabilities `[n]` of everything that a small group may take."""
    rungs = group.cost.shape[3]
    if (group.counts > 1).any() or len(group.log_shared) * float(rungs) ** len(group.leaves) > 100_000:
        return None
    costs, log_probs = group.own[..., None], group.log_shared[:, None]
    for v in range(len(group.leaves)):
        costs = (costs[..., None] + group.cost[:, :, v, None, :]).reshape(len(costs), len(log_probs), -1)
        log_probs = (log_probs[..., None] + group.log_gates[v]).reshape(len(log_probs), -1)
    possible = np.isfinite(log_probs.ravel())
    return costs.reshape(len(costs), -1).T[possible], np.exp(log_probs.ravel()[possible])


def _drawn_probability(problem: Problem, limits: np.ndarray, draws: int, seed: int) -> float:
    generator = np.random.default_rng(seed)
    rows = max(1, min(draws, MOST_NUMBERS // max(1, sum(group.gates for group in problem.groups))))
    free, within = np.zeros(len(limits)), 0
    allowed = sum(float(logsumexp(group.tilted(free)[1])) for group in problem.groups)
    for first in range(0, draws, rows):
        part = min(rows, draws - first)
        cost = problem.constant + sum(_propose(group, free, part, generator)[2] for group in problem.groups)
        within += int((cost <= limits).all(1).sum())
    return float(min(1.0, np.exp(allowed))) * within / draws
