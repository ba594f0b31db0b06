"""Widths of least energy are found under limits where energies of pairs count too."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array, hstack, vstack

from probq.decisions.allocation.integer_program import by_group, to_choice, to_columns
from probq.decisions.allocation.problem import Choice, Problem

Pairs = Mapping[tuple[str, str], np.ndarray]  # energies of two widths, [rungs of one, rungs of the other]
MOST_CUTS = 50
MOST_TRIED = 20_000  # changes of two widths that are looked at, the best ones first
LEAST_GAIN = 1e-12


def least_energy(
    problem: Problem, limits: np.ndarray, pairs: Pairs, start: Choice, seconds: float
) -> tuple[Choice, float]:
    """Return the choice of least `-log-probability + energies of pairs` within the limits, and its proven gap.

    An integer programme: for each pair of quantizers a joint law `y` over its rungs, whose marginals are the rungs
    chosen (Sherali and Adams' first level), so that the objective is linear.

    Args:
        problem: the discrete problem with one gate for each leaf; its log-probabilities are minus the unary energies.
        limits: `[K]`.
        pairs: energies of pairs of names.
        start: a choice within the limits, from which better ones are searched for before.
        seconds: after which the best choice so far is returned, with its gap.

    Source: H. D. Sherali, W. P. Adams, 1990, "A Hierarchy of Relaxations Between the Continuous and Convex Hull
    Representations for Zero-One Programming Problems".
    """
    gain = np.concatenate(
        [np.append(g.log_shared, np.tile(g.log_gates.ravel(), g.own.shape[1])) for g in problem.groups]
    )
    price, equations = to_columns(problem)
    possible = np.isfinite(gain)
    marginals = _marginals(problem)
    joint, links = _linked(pairs, marginals, len(gain))
    objective = np.concatenate([np.where(possible, -gain, 0), joint])
    room = limits - problem.constant
    unit = np.maximum(np.maximum(room, price.max(1, initial=0) * 1e-9), 1e-300)[:, None]
    pad = csr_array((equations.A.shape[0], len(joint)))
    constraints = [
        LinearConstraint(hstack([equations.A, pad]), equations.lb, equations.ub),
        LinearConstraint(hstack([csr_array(price / unit), csr_array((len(room), len(joint)))]), ub=room / unit[:, 0]),
        LinearConstraint(links, 0, 0),
    ]
    integral = np.concatenate([np.ones(len(gain)), np.zeros(len(joint))])
    bounds = Bounds(0, np.concatenate([possible.astype(float), np.ones(len(joint))]))
    end = time.monotonic() + seconds
    best = descend(problem, limits, pairs, start, seconds / 4)
    value = energy_of(problem, best, pairs)
    for _ in range(MOST_CUTS):
        options = {"time_limit": max(1.0, end - time.monotonic()), "mip_rel_gap": 0.0}
        result = milp(objective, constraints=constraints, integrality=integral, bounds=bounds, options=options)
        bound = result.mip_dual_bound
        if result.x is None:
            return best, 0.0 if result.status == 2 else max(0.0, value - (bound if bound is not None else -np.inf))
        chosen = result.x[: len(gain)] > 0.5
        choice = [to_choice(g, x) for g, x in zip(problem.groups, by_group(problem, chosen.astype(int)), strict=True)]
        if problem.keeps(choice, limits):
            found = energy_of(problem, choice, pairs)
            best, value = (choice, found) if found < value else (best, value)
            gap = value - bound if bound is not None else np.inf
            return best, 0.0 if result.status == 0 else max(0.0, float(gap))
        cut = np.concatenate([chosen.astype(float), np.zeros(len(joint))])
        constraints.append(LinearConstraint(cut[None], ub=int(chosen.sum()) - 1))  # over the limit by rounding
    return best, np.inf


def descend(problem: Problem, limits: np.ndarray, pairs: Pairs, start: Choice, seconds: float) -> Choice:
    """Improve a choice by the best changes of one or two widths, until none within the limits has less energy.

    Args:
        problem: as in `least_energy`.
        limits: `[K]`.
        pairs: energies of pairs of names.
        start: a choice within the limits.
        seconds: after which it stops where it is.
    """
    end, best, names = time.monotonic() + seconds, start, list(_rungs(problem, start))
    first = dict(zip(names, np.cumsum([0, *(len(problem.ladders[n]) for n in names[:-1])]), strict=True))
    site = np.repeat(np.arange(len(names)), [len(problem.ladders[n]) for n in names])
    form = np.zeros((len(site), len(site)))
    for (one, other), table in pairs.items():
        rows, columns = (slice(first[n], first[n] + k) for n, k in zip((one, other), table.shape, strict=True))
        form[rows, columns], form[columns, rows] = table, table.T
    unary = _unary(problem, names)
    while time.monotonic() < end:
        rungs = _rungs(problem, best)
        at = np.array([first[n] + rungs[n] for n in names])
        own = at[site]
        field = form[:, at].sum(1)
        single = unary - unary[own] + field - field[own]  # change of energy when one width moves
        double = single[:, None] + single + form - form[:, own] - form[own] + form[np.ix_(own, own)]
        double[site[:, None] == site] = np.inf
        np.fill_diagonal(double, single)
        order = np.argsort(double, axis=None)[: 2 * MOST_TRIED]
        better = (divmod(int(k), len(site)) for k in order if double.flat[k] < -LEAST_GAIN)
        moves = ({names[site[k]]: int(k - first[names[site[k]]]) for k in pair} for pair in better)
        options = (_choice(problem, rungs | move) for move in moves)
        found = next((c for c in options if c is not None and problem.keeps(c, limits)), None)
        if found is None:
            return best
        best = found
    return best


def _unary(problem: Problem, names: Sequence[str]) -> np.ndarray:
    """Return minus the log-probability of every rung of every name in turn; infinite where one is barred."""
    found: dict[str, np.ndarray] = {}
    for g in problem.groups:
        for s, name in enumerate(g.shared):
            rows = [g.log_shared[g.combinations[:, s] == rung] for rung in range(len(problem.ladders[name]))]
            # a combination's log-probability is the sum of its members': any other member cancels in differences
            found[name] = np.array([-row.max() if len(row) else np.inf for row in rows])
        for v, name in enumerate(g.leaves):
            found[name] = -g.log_gates[v][: len(problem.ladders[name])]
    return np.concatenate([found[name] for name in names])


def _rungs(problem: Problem, choice: Choice) -> dict[str, int]:
    rungs: dict[str, int] = {}
    for group, (combination, of_gates) in zip(problem.groups, choice, strict=True):
        rungs |= dict(zip(group.shared, map(int, group.combinations[combination]), strict=True))
        rungs |= dict(zip(group.leaves, map(int, of_gates), strict=True))
    return rungs


def _choice(problem: Problem, rungs: Mapping[str, int]) -> Choice | None:
    """Return the choice of given rungs, or None where one is barred."""
    result: Choice = []
    for g in problem.groups:
        wanted = [rungs[name] for name in g.shared]
        found = np.flatnonzero((g.combinations == wanted).all(1)) if wanted else np.zeros(1, int)
        leaves = np.array([rungs[name] for name in g.leaves], dtype=int)
        if not len(found) or not np.isfinite(g.log_gates[np.arange(g.gates), leaves]).all():
            return None
        result.append((int(found[0]), leaves))
    return result


def energy_of(problem: Problem, choice: Choice, pairs: Pairs) -> float:
    """Return `-log-probability + energies of pairs` of a choice."""
    rungs = _rungs(problem, choice)
    return float(-problem.value(choice)[0] + sum(table[rungs[a], rungs[b]] for (a, b), table in pairs.items()))


def _marginals(problem: Problem) -> dict[str, list[np.ndarray]]:
    """Return, for each name and rung, the columns whose sum says whether it is chosen."""
    found: dict[str, list[np.ndarray]] = {}
    start = 0
    for g in problem.groups:
        combinations, leaves, rungs = len(g.log_shared), len(g.leaves), g.cost.shape[3]
        for s, name in enumerate(g.shared):
            count = len(problem.ladders[name])
            found[name] = [start + np.flatnonzero(g.combinations[:, s] == rung) for rung in range(count)]
        for v, name in enumerate(g.leaves):
            first = start + combinations + v * rungs + np.arange(combinations) * leaves * rungs
            found[name] = [first + rung for rung in range(len(problem.ladders[name]))]
        start += combinations * (1 + leaves * rungs)
    return found


def _linked(pairs: Pairs, marginals: Mapping[str, list[np.ndarray]], columns: int) -> tuple[np.ndarray, csr_array]:
    """Return energies of all joint columns, and equations that tie their marginals to the rungs chosen."""
    energies, rows, start = [], [], columns
    for (one, other), table in pairs.items():
        places = start + np.arange(table.size).reshape(table.shape)
        for name, sums in ((one, places), (other, places.T)):
            rows += [(joint, where) for joint, where in zip(sums, marginals[name], strict=True)]
        energies.append(table.ravel())
        start += table.size
    if not rows:
        return np.zeros(0), csr_array((0, columns))
    entries = [
        coo_array(
            (
                np.append(np.ones(len(joint)), -np.ones(len(where))),
                (np.zeros(len(joint) + len(where), int), np.append(joint, where)),
            ),
            shape=(1, start),
        )
        for joint, where in rows
    ]
    return np.concatenate(energies), vstack(entries).tocsr()
