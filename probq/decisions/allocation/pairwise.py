"""Widths of least energy are found under limits where energies of pairs count too."""

from __future__ import annotations

import math
import time
from typing import TypeAlias

import numpy as np
from scipy.sparse import coo_array, csr_array, vstack

from probq.decisions.allocation.local_search import LocalSearch, Pairs
from probq.decisions.allocation.problem import Choice, Problem
from probq.decisions.allocation.solver import Rows, minimise

Entries: TypeAlias = tuple[np.ndarray, np.ndarray]  # columns and their values, of one row
MOST_CUTS = 50
LEAST_SECONDS = 0.1


def least_energy(
    problem: Problem, limits: np.ndarray, pairs: Pairs, start: Choice, seconds: float
) -> tuple[Choice, float]:
    """Return the choice of least `-log-probability + energies of pairs` within the limits, and its proven gap.

    A local search finds a good one. An integer programme then improves it or proves how far it is from the best: it has
    a joint law over the rungs of each two quantizers that have an energy or a cost together, whose marginals are the
    rungs chosen (Sherali and Adams' first level), so that energy and costs are linear.

    Args:
        problem: the discrete problem with one gate for each leaf; its log-probabilities are minus the unary energies.
        limits: `[K]`.
        pairs: energies of pairs of names.
        start: a choice within the limits.
        seconds: after which the best choice so far is returned, with its gap.

    Source: H. D. Sherali, W. P. Adams, 1990, "A Hierarchy of Relaxations Between the Continuous and Convex Hull
    Representations for Zero-One Programming Problems".
    """
    end = time.monotonic() + seconds
    search = LocalSearch(problem, limits, pairs)
    best = search.run(search.places(start), seconds / 4)
    value = search.energy.value(best)
    programme = _Programme(search)
    rows, known = programme.rows(), programme.solution(best)
    for _ in range(MOST_CUTS):
        left = max(LEAST_SECONDS, end - time.monotonic())
        found, bound = minimise(programme.objective, rows, programme.upper, programme.integral, known, left)
        at = programme.places(found)
        if problem.keeps(search.choice(at), limits):
            best = at if search.energy.value(at) < value else best
            value = search.energy.value(best)
            gap = value - bound
            return search.choice(best), 0.0 if gap < 1e-7 * max(1.0, abs(value)) else float(gap)
        rows = _cut(rows, at)  # over the limit by rounding
    return search.choice(best), math.inf


class _Programme:
    """An integer programme has a column for each rung of each name, and for each pair of rungs of an edge."""

    def __init__(self, search: LocalSearch) -> None:
        self.search, forms = search, (search.energy, *search.costs)
        self.count = len(search.site)
        joint = np.triu(np.logical_or.reduce([form.paired != 0 for form in forms]), 1)
        edges = {(int(search.site[a]), int(search.site[b])) for a, b in zip(*np.nonzero(joint), strict=True)}
        self.edges = sorted({(min(edge), max(edge)) for edge in edges})
        self.ranges = [np.flatnonzero(search.site == k) for k in range(len(search.names))]
        blocks = [np.ix_(self.ranges[i], self.ranges[j]) for i, j in self.edges]
        barred = ~np.isfinite(search.energy.linear)
        linear = np.where(barred, 0.0, search.energy.linear)
        self.objective = np.concatenate([linear, *(search.energy.paired[block].ravel() for block in blocks)])
        self.costs = [np.concatenate([c.linear, *(c.paired[block].ravel() for block in blocks)]) for c in search.costs]
        self.upper = np.concatenate([~barred, np.ones(len(self.objective) - self.count)]).astype(float)
        self.integral = np.arange(len(self.objective)) < self.count

    def rows(self) -> Rows:
        """Return one rung for each name, marginals of joint laws, and limits in units of what they leave."""
        rows: list[tuple[Entries, float, float]] = [((own, np.ones(len(own))), 1.0, 1.0) for own in self.ranges]
        place = self.count
        for i, j in self.edges:
            own, other = self.ranges[i], self.ranges[j]
            joint = place + np.arange(len(own) * len(other)).reshape(len(own), len(other))
            place += joint.size
            for sums, marginal in ((joint, own), (joint.T, other)):
                for columns, one in zip(sums, marginal, strict=True):
                    rows.append(((np.append(columns, one), np.append(np.ones(len(columns)), -1.0)), 0.0, 0.0))
        for cost, room in zip(self.costs, self.search.room, strict=True):
            unit = max(room, float(np.abs(cost).max(initial=0)) * 1e-9, 1e-300)
            columns = np.flatnonzero(cost)
            rows.append(((columns, cost[columns] / unit), -math.inf, room / unit))
        where = np.repeat(np.arange(len(rows)), [len(columns) for (columns, _), _, _ in rows])
        columns, values = (np.concatenate([entries[k] for entries, _, _ in rows]) for k in (0, 1))
        matrix = coo_array((values, (where, columns)), shape=(len(rows), len(self.objective))).tocsr()
        return Rows(matrix, np.array([low for _, low, _ in rows]), np.array([high for _, _, high in rows]))

    def solution(self, at: np.ndarray) -> np.ndarray:
        """Return the columns of a choice."""
        chosen = np.zeros(self.count)
        chosen[at] = 1
        joint = [np.outer(chosen[self.ranges[i]], chosen[self.ranges[j]]).ravel() for i, j in self.edges]
        return np.concatenate([chosen, *joint])

    def places(self, found: np.ndarray) -> np.ndarray:
        """Return the place of each name's rung in a solution."""
        return np.array([own[found[own].argmax()] for own in self.ranges])


def _cut(rows: Rows, at: np.ndarray) -> Rows:
    """Return the rows with another one, which forbids a choice."""
    row = np.zeros((1, rows.matrix.shape[1]))
    row[0, at] = 1
    matrix = vstack([rows.matrix, csr_array(row)]).tocsr()
    return Rows(matrix, np.append(rows.lower, -math.inf), np.append(rows.upper, len(at) - 1.0))
