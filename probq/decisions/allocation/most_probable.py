"""These solvers find the most probable choices of the discrete problem under limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from probq.decisions.allocation.integer_program import by_group, nearest_to_limits, to_choice, to_columns
from probq.decisions.allocation.problem import Choice, Problem
from probq.utils.errors import ProbqError
from probq.utils.numbers import format_number

Limits: TypeAlias = float | np.ndarray
MOST_CUTS = 100
ROUNDS = 6


def most_probable(problem: Problem, limit: Limits) -> tuple[Choice, float]:
    """Return the choice of greatest log-probability with `cost <= limit`, and its proven gap in nats.

    With one gate for each tensor it is an integer programme, solved to optimality (gap 0). With many gates it is the
    best choice found along the Lagrangian dual, and the gap is the distance to the dual bound.

    Args:
        problem: the discrete problem.
        limit: the greatest allowed cost, `[K]` where there are several.

    Raises:
        ProbqError: if no choice keeps the limits; it names those that are in the way, and the nearest choice.
    """
    limits, start = check_reachable(problem, limit)
    if all((group.counts == 1).all() for group in problem.groups):
        return _integer_programme(problem, limits, start), 0.0
    return _lagrangian(problem, limits, start)


def check_reachable(problem: Problem, limit: Limits) -> tuple[np.ndarray, Choice]:
    """Return the limits `[K]`, a rounding error lower where costs are fractions, and a choice that keeps them.

    Raises:
        ProbqError: if there is none; it names the limits that are in the way, and the nearest choice.
    """
    limits = problem.inside(limit)
    if len(limits) == 1:
        return limits, [group.cheapest(0) for group in problem.groups]
    for k in range(len(limits)):
        choice = [group.cheapest(k) for group in problem.groups]
        if problem.keeps(choice, limits):
            return limits, choice
    choice, excess = nearest_to_limits(problem, limits)
    if not problem.keeps(choice, limits):
        costs = problem.value(choice)[1]
        wanted = " and ".join(f"{format_number(x)} {name}" for x, name in zip(limits, problem.names, strict=True))
        found = " and ".join(
            f"{format_number(x, up=True)} {name}" for x, name in zip(costs, problem.names, strict=True)
        )
        raise ProbqError(
            f"the budgets of {wanted} can each be kept, but not together: the widths{problem.within} that come nearest "
            f"cost {found}; raise the budgets by {format_number(100 * (excess - 1), 3, up=True)} %, or add narrower "
            "rungs to the plan's ladders"
        )
    return limits, choice


def _integer_programme(problem: Problem, limits: np.ndarray, start: Choice) -> Choice:
    return next(_in_order(problem, limits), start)


def most_probable_first(problem: Problem, limit: Limits) -> Iterator[Choice]:
    """Yield all choices with `cost <= limit` by falling log-probability, each from an integer programme.

    Args:
        problem: the discrete problem, with one gate for each leaf.
        limit: the greatest allowed cost, `[K]` where there are several.

    Raises:
        ProbqError: if no choice keeps the limits.

    Source: K. G. Murty, 1968, "An Algorithm for Ranking all the Assignments in Order of Increasing Cost" (exclusion of
    what was found).
    """
    return _in_order(problem, check_reachable(problem, limit)[0])


def _in_order(problem: Problem, limits: np.ndarray) -> Iterator[Choice]:
    """Yield choices in order.

    The columns of the programme are, for each group, its combinations, and for each of those the rungs of each leaf.
    """
    gain = np.concatenate(
        [np.append(g.log_shared, np.tile(g.log_gates.ravel(), g.own.shape[1])) for g in problem.groups]
    )
    price, equations = to_columns(problem)
    room = limits - problem.constant
    possible = np.isfinite(gain) & _has_room(problem, room)
    unit = np.maximum(np.maximum(room, price.max(1, initial=0) * 1e-9), 1e-300)[:, None]
    constraints = [equations, LinearConstraint(price / unit, ub=room / unit[:, 0])]
    useless = 0
    while useless < MOST_CUTS:
        result = milp(
            -np.where(possible, gain, 0),
            constraints=constraints,
            integrality=np.ones(len(gain)),
            bounds=Bounds(0, possible),
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:
            return
        chosen = result.x > 0.5
        choice = [to_choice(g, x) for g, x in zip(problem.groups, by_group(problem, chosen.astype(int)), strict=True)]
        if problem.keeps(choice, limits):
            yield choice
        else:
            useless += 1
        constraints.append(LinearConstraint(chosen[None].astype(float), ub=int(chosen.sum()) - 1))  # not this one


def _has_room(problem: Problem, room: np.ndarray) -> np.ndarray:
    """Return which columns leave room for the least costs of all else.

    The solver's tolerance would let some others pass.
    """
    parts = []
    for g in problem.groups:
        barred = np.where(np.isfinite(g.log_gates), 0, np.inf)  # one gate for each leaf
        least = (g.cost + barred).min(3)
        of_shared = g.own + least.sum(2)
        of_leaves = of_shared[:, :, None, None] + g.cost - least[..., None]
        parts.append((of_shared.min(1), np.concatenate([of_shared, of_leaves.reshape(len(room), -1)], 1)))
    total = sum(smallest for smallest, _ in parts)
    slack = room - total + 1e-9 * np.abs(room)
    return np.concatenate([(needed - s[:, None] <= slack[:, None]).all(0) for s, needed in parts])


def _priced(problem: Problem, prices: np.ndarray) -> tuple[Choice, float]:
    """Return the choice that maximises `log-probability - prices * costs`, and that maximum."""
    choice, total = [], float(-prices @ problem.constant)
    for g in problem.groups:
        gates = g.log_gates[None] - np.tensordot(prices, g.shares, 1)[:, g.owner]
        of_combination = g.log_shared - prices @ g.own + gates.max(2).sum(1)
        t = int(of_combination.argmax())
        choice.append((t, gates[t].argmax(1)))
        total += float(of_combination[t])
    return choice, total


def _lagrangian(problem: Problem, limits: np.ndarray, start: Choice) -> tuple[Choice, float]:
    """Bisect each price in turn.

    Several limits take rounds, for the price of one moves the others.
    """
    choice, bound = _priced(problem, np.zeros(len(limits)))
    if problem.keeps(choice, limits):
        return choice, 0.0
    best, prices = start, np.zeros(len(limits))
    for k in list(range(len(limits))) * (1 if len(limits) == 1 else ROUNDS):
        unit = 1.0 / max(limits[k], 1e-12)
        prices[k] = 0.0
        low, high = 0.0, unit
        while (
            problem.value(_priced(problem, replace_price(prices, k, high))[0])[1][k] > limits[k] and high < 1e12 * unit
        ):
            high *= 4
        for _ in range(100 if len(limits) == 1 else 40):
            price = (low + high) / 2
            choice, value = _priced(problem, replace_price(prices, k, price))
            bound = min(bound, value + float(replace_price(prices, k, price) @ limits))
            log_prob, cost = problem.value(choice)
            low, high = (price, high) if cost[k] > limits[k] else (low, price)
            if (cost <= limits).all() and log_prob > problem.value(best)[0]:
                best = choice
        prices[k] = 0.0 if high <= 2 * unit * 2.0**-40 else high
    best = _filled(problem, best, limits)
    return best, max(0.0, bound - problem.value(best)[0])


def replace_price(prices: np.ndarray, k: int, price: float) -> np.ndarray:
    """Return the prices with one of them replaced."""
    result = prices.copy()
    result[k] = price
    return result


def _filled(problem: Problem, choice: Choice, limits: np.ndarray) -> Choice:
    """Spend what is left by moving single gates to more probable rungs, best log-probability for the cost first."""
    room = limits - problem.value(choice)[1]
    unit = 1 / np.maximum(limits, 1e-300)
    result = []
    for group, (t, rungs) in zip(problem.groups, choice, strict=True):
        rungs = rungs.copy()
        step = group.shares[:, t][:, group.owner]  # [K, G, B]
        gate = np.arange(group.gates)
        gain = group.log_gates - group.log_gates[gate, rungs][:, None]
        price = np.tensordot(unit, step - step[:, gate, rungs][..., None], 1)
        order = np.argsort(-(gain / np.maximum(price, 1e-300)), axis=None)
        for index in order[gain.reshape(-1)[order] > 0]:
            g, rung = np.unravel_index(index, gain.shape)
            better = group.log_gates[g, rung] > group.log_gates[g, rungs[g]]
            needed = step[:, g, rung] - step[:, g, rungs[g]]
            if better and (needed <= np.maximum(room, 0) * (1 - 1e-9)).all():
                rungs[g], room = rung, room - needed
        result.append((t, rungs))
    return result if problem.keeps(result, limits) else choice
