"""The discrete problem is an integer programme, which also finds the widths nearest to keeping several limits."""

from __future__ import annotations

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from probq.decisions.allocation.problem import Choice, Group, Problem
from probq.utils.errors import ProbqError


def nearest_to_limits(problem: Problem, limits: np.ndarray) -> tuple[Choice, float]:
    """Return the choice whose greatest excess `cost_k / limit_k` is least, and that excess.

    The excess is at most 1 if all limits can be kept.

        min s   s.t.   cost_k <= s limit_k for each k

    It depends only on how many gates of a leaf take each rung, so it is a small integer programme over those numbers.

    Args:
        problem: the discrete problem.
        limits: `[K]`.

    Raises:
        ProbqError: if the solver finds nothing.
    """
    price, equations = to_columns(problem, extra=1)
    upper = np.concatenate([_most(g) for g in problem.groups])
    room = np.column_stack([price / limits[:, None], -np.ones(len(limits))])
    result = milp(
        np.append(np.zeros(len(upper)), 1.0),
        constraints=[equations, LinearConstraint(room, ub=-problem.constant / limits)],
        integrality=np.append(np.ones(len(upper)), 0),
        bounds=Bounds(0, np.append(upper, np.inf)),
    )
    if result.x is None:
        raise ProbqError("no widths were found that come near the budgets; raise them")
    numbers = by_group(problem, np.round(result.x[:-1]).astype(int))
    choice = [to_choice(g, n) for g, n in zip(problem.groups, numbers, strict=True)]
    return choice, float((problem.value(choice)[1] / limits).max())


def to_columns(problem: Problem, extra: int = 0) -> tuple[np.ndarray, LinearConstraint]:
    """Return the costs `[K, columns]` of the variables of an integer programme, and the equations between these.

    Each group has a variable for each combination, and for each of those one for each rung of each leaf: the number of
    its gates there.

    Args:
        problem: the discrete problem.
        extra: number of variables that follow and that the equations leave out.
    """
    price = [np.concatenate([g.own, g.shares.reshape(len(g.own), -1)], 1) for g in problem.groups]
    rows: list[tuple[np.ndarray, np.ndarray, float]] = []
    for group, start in zip(problem.groups, _starts(problem), strict=True):
        rows += [(where + start, value, right) for where, value, right in _equations(group)]
    where = np.repeat(np.arange(len(rows)), [len(row) for row, _, _ in rows])
    entries = (np.concatenate([v for _, v, _ in rows]), (where, np.concatenate([c for c, _, _ in rows])))
    total = np.concatenate(price, axis=1)
    matrix = coo_array(entries, shape=(len(rows), total.shape[1] + extra)).tocsr()
    right = [r for _, _, r in rows]
    return total, LinearConstraint(matrix, right, right)


def by_group(problem: Problem, values: np.ndarray) -> list[np.ndarray]:
    """Return the variables of each group."""
    return np.split(values, _starts(problem)[1:])


def to_choice(group: Group, numbers: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the choice with given numbers of gates on each rung; gates that like wide rungs get those."""
    combinations = len(group.log_shared)
    t = int(numbers[:combinations].argmax())
    of_rungs = numbers[combinations:].reshape(combinations, len(group.leaves), -1)[t]
    rungs = np.zeros(group.gates, dtype=int)
    for v, (end, count) in enumerate(zip(np.cumsum(group.counts), group.counts, strict=True)):
        liking = (np.exp(group.log_gates[end - count : end]) * np.arange(of_rungs.shape[1])).sum(1)
        rungs[end - count + np.argsort(liking, kind="stable")] = np.repeat(np.arange(of_rungs.shape[1]), of_rungs[v])
    return t, rungs


def _starts(problem: Problem) -> np.ndarray:
    sizes = [g.own.shape[1] * (1 + g.cost.shape[2] * g.cost.shape[3]) for g in problem.groups]
    return np.cumsum([0, *sizes[:-1]])


def _most(group: Group) -> np.ndarray:
    """Return the greatest value of each variable."""
    finite = np.isfinite(group.log_gates)[np.cumsum(group.counts) - group.counts]
    allowed = (finite * group.counts[:, None]).ravel()
    combinations = len(group.log_shared)
    return np.concatenate([np.ones(combinations), np.tile(allowed, combinations)]).astype(float)


def _equations(group: Group) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Return the columns, values and right-hand sides of the equations.

    One combination is taken; given it, each leaf's gates are all on some rung.
    """
    combinations, leaves, rungs = len(group.log_shared), len(group.leaves), group.cost.shape[3]
    result = [(np.arange(combinations), np.ones(combinations), 1.0)]
    for t in range(combinations):
        for v in range(leaves):
            first = combinations + (t * leaves + v) * rungs
            where = np.append(np.arange(first, first + rungs), t)
            result.append((where, np.append(np.ones(rungs), -float(group.counts[v])), 0.0))
    return result
