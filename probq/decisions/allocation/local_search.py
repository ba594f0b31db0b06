"""Choices of little energy are found by moving one or two widths at a time, again and again from nearby starts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from probq.decisions.allocation.problem import Choice, Problem

Pairs = Mapping[tuple[str, str], np.ndarray]  # energies of two widths, [rungs of one, rungs of the other]
RESTARTS = 200
LEAST_GAIN = 1e-12


@dataclass(frozen=True)
class QuadraticForm:
    """A quadratic form over the rungs of all names one after the other, `R` in all, has linear and paired parts.

    Attributes:
        linear: `[R]`, infinite where a rung is barred.
        paired: `[R, R]`, symmetric, 0 between rungs of one name.
    """

    linear: np.ndarray
    paired: np.ndarray

    def value(self, at: np.ndarray) -> float:
        """Return the value of a choice, `at` the place of each name's rung."""
        return float(self.linear[at].sum() + self.paired[np.ix_(at, at)].sum() / 2)

    def moves(self, at: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Return the change when the names of two places move there, `[R, R]`; on the diagonal when one does.

        Args:
            at: places of the names' rungs.
            own: for each place that of its name's rung, `[R]`.
        """
        field = self.paired[:, at].sum(1)
        single = self.linear - self.linear[own] + field - field[own]
        paired = self.paired
        double = single[:, None] + single + paired - paired[:, own] - paired[own] + paired[np.ix_(own, own)]
        np.fill_diagonal(double, single)
        return double


class LocalSearch:
    """A local search knows a discrete problem with one gate for each leaf as quadratic forms: its energy and its costs.

    Args:
        problem: its log-probabilities are minus the energies of single widths.
        limits: `[K]`.
        pairs: energies of pairs of names.
    """

    def __init__(self, problem: Problem, limits: np.ndarray, pairs: Pairs) -> None:
        self.problem, self.limits = problem, limits
        self.names = [name for g in problem.groups for name in (*g.shared, *g.leaves)]
        sizes = [len(problem.ladders[name]) for name in self.names]
        self.first = dict(zip(self.names, np.cumsum([0, *sizes[:-1]]), strict=True))
        self.site = np.repeat(np.arange(len(sizes)), sizes)
        self.energy = QuadraticForm(self._linear_energy(), self._matrix(pairs))
        self.costs = [self._cost(k) for k in range(len(limits))]
        whole = [all(np.array_equal(t[k], np.round(t[k])) for _, t in problem.tables) for k in range(len(limits))]
        # sums of fractions depend on their order
        self.room = np.where(whole, limits, limits - 1e-12 * np.abs(limits)) - problem.constant

    def run(self, start: np.ndarray, seconds: float) -> np.ndarray:
        """Return the best choice within the limits that was found from a start, which keeps them.

        The search descends, then moves a few names at random and descends again, from the best so far.

        Args:
            start: the place of each name's rung.
            seconds: after which it stops.
        """
        end, generator = time.monotonic() + seconds, np.random.default_rng(0)
        best = self._descend(start, end)
        for _ in range(RESTARTS):
            if time.monotonic() > end:
                break
            other = self._descend(self._shaken(best, generator), end)
            if self.energy.value(other) < self.energy.value(best) - LEAST_GAIN:
                best = other
        return best

    def _descend(self, at: np.ndarray, end: float) -> np.ndarray:
        """Take the best change of one or two names within the limits until none has less energy."""
        while time.monotonic() < end:
            own = at[self.site]
            change = self.energy.moves(at, own)
            change[(self.site[:, None] == self.site) & ~np.eye(len(own), dtype=bool)] = np.inf
            for form, room in zip(self.costs, self._rooms(at), strict=True):
                change[form.moves(at, own) > room] = np.inf
            one, other = np.unravel_index(int(change.argmin()), change.shape)
            if not change[one, other] < -LEAST_GAIN:
                return at
            at = at.copy()
            at[self.site[[one, other]]] = one, other
        return at

    def _shaken(self, at: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Move a few names to random rungs, each move only if the limits are kept."""
        at = at.copy()
        for _ in range(int(generator.integers(2, max(3, len(self.names) // 4) + 1))):
            place = int(generator.integers(len(self.site)))
            tried = at.copy()
            tried[self.site[place]] = place
            if np.isfinite(self.energy.linear[place]) and all(room >= 0 for room in self._rooms(tried)):
                at = tried
        return at

    def _rooms(self, at: np.ndarray) -> list[float]:
        """Return what each limit leaves."""
        return [float(room - form.value(at)) for room, form in zip(self.room, self.costs, strict=True)]

    def places(self, choice: Choice) -> np.ndarray:
        """Return the place of each name's rung in a choice."""
        rungs: dict[str, int] = {}
        for group, (combination, of_gates) in zip(self.problem.groups, choice, strict=True):
            rungs |= dict(zip(group.shared, map(int, group.combinations[combination]), strict=True))
            rungs |= dict(zip(group.leaves, map(int, of_gates), strict=True))
        return np.array([self.first[name] + rungs[name] for name in self.names])

    def choice(self, at: np.ndarray) -> Choice:
        """Return the choice of given places."""
        rungs = {name: int(place - self.first[name]) for name, place in zip(self.names, at, strict=True)}
        result: Choice = []
        for g in self.problem.groups:
            combination = np.flatnonzero((g.combinations == [rungs[name] for name in g.shared]).all(1))[0]
            result.append((int(combination), np.array([rungs[name] for name in g.leaves], dtype=int)))
        return result

    def _slice(self, name: str) -> slice:
        return slice(self.first[name], self.first[name] + len(self.problem.ladders[name]))

    def _linear_energy(self) -> np.ndarray:
        found = np.zeros(len(self.site))
        for g in self.problem.groups:
            for s, name in enumerate(g.shared):
                rows = [g.log_shared[g.combinations[:, s] == rung] for rung in range(len(self.problem.ladders[name]))]
                # a combination's log-probability is the sum of its members': any other member cancels in differences
                found[self._slice(name)] = [-row.max() if len(row) else np.inf for row in rows]
            for v, name in enumerate(g.leaves):
                found[self._slice(name)] = -g.log_gates[v][: len(self.problem.ladders[name])]
        return found

    def _matrix(self, pairs: Pairs) -> np.ndarray:
        form = np.zeros((len(self.site), len(self.site)))
        for (one, other), table in pairs.items():
            form[self._slice(one), self._slice(other)] = table
            form[self._slice(other), self._slice(one)] = table.T
        return form

    def _cost(self, index: int) -> QuadraticForm:
        """Return a cost as a quadratic form: each layer's is a table of two widths."""
        linear, paired = np.zeros(len(self.site)), np.zeros((len(self.site), len(self.site)))
        for (weight, x), tables in self.problem.tables:
            table = tables[index]
            if weight is not None and x is not None and weight != x:
                paired[self._slice(weight), self._slice(x)] += table
                paired[self._slice(x), self._slice(weight)] += table.T
            elif weight is not None:
                linear[self._slice(weight)] += table.diagonal() if x == weight else table[:, 0]
            elif x is not None:
                linear[self._slice(x)] += table[0]
        return QuadraticForm(linear, paired)
