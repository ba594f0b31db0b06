"""The choices of widths that a refinement looks at: options of every quantizer, and steps from one choice to others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from probq import cost as costs
from probq.network.tracing.layer import Layer

State: TypeAlias = tuple[int, ...]

SPENT, LEAST = 0.75, 20  # the least share of a limit that choices spend, and their least number
MOST_STEPS = 4096  # that pay for a rung up, over all rungs up from one state


@dataclass(frozen=True)
class WidthSpace:
    """A space holds the choices of one option for each quantizer.

    Attributes:
        names: of the quantizers.
        options: bits of every option of each quantizer, from narrow to wide.
        log_probs: log-probability of every option in nats.
        limits: costs `[N]` of states `[N, quantizers]` and greatest allowed cost, a pair for each limit.
        sites: for each tied quantizer, the one whose width it shares.
    """

    names: tuple[str, ...]
    options: tuple[tuple[Any, ...], ...]
    log_probs: tuple[np.ndarray, ...]
    limits: tuple[tuple[Callable[[np.ndarray], np.ndarray], float], ...]
    sites: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Return the number of states, whatever they cost."""
        return math.prod(len(options) for options in self.options)

    @property
    def has_own_gates(self) -> bool:
        """Return whether channels or weights have widths of their own."""
        return any(np.ndim(bits) for options in self.options for bits in options)

    def widths(self, state: State) -> dict[str, Any]:
        """Return the bits of every quantizer."""
        own = {n: options[k] for n, options, k in zip(self.names, self.options, state, strict=True)}
        return own | {name: own[site] for name, site in self.sites.items()}

    def has(self, widths: Mapping[str, Any]) -> bool:
        """Return whether the bits of every quantizer are an option."""
        pairs = zip(self.names, self.options, strict=True)
        return all(any(np.array_equal(np.ravel(o), np.ravel(widths[name])) for o in options) for name, options in pairs)

    def state(self, widths: Mapping[str, Any]) -> State:
        """Return the state of the bits of every quantizer."""
        return tuple(
            next(k for k, own in enumerate(options) if np.array_equal(np.ravel(own), np.ravel(widths[name])))
            for name, options in zip(self.names, self.options, strict=True)
        )

    def log_prob(self, state: State) -> float:
        """Return the log-probability in nats."""
        return float(self.each_log_prob(np.array([state]))[0])

    def each_log_prob(self, states: np.ndarray) -> np.ndarray:
        """Return the log-probabilities `[N]` in nats of states `[N, quantizers]`."""
        total = np.zeros(len(states))
        for place, log_probs in enumerate(self.log_probs):
            total += log_probs[states[:, place]]
        return total

    def keeps(self, state: State) -> bool:
        """Return whether every limit is kept."""
        return bool(self._kept(np.array([state]))[0])

    def _kept(self, states: np.ndarray) -> np.ndarray:
        """Return whether each row of `[N, quantizers]` keeps every limit."""
        kept = np.ones(len(states), dtype=bool)
        for cost, limit in self.limits:
            kept &= cost(states) <= limit
        return kept

    def fullness(self, states: Sequence[State]) -> np.ndarray:
        """For each state the largest share of a limit that is used."""
        shares = [cost(np.array(states)) / limit for cost, limit in self.limits]
        return np.max(shares, axis=0) if shares else np.zeros(len(states))

    def spending(self, states: Sequence[State]) -> np.ndarray:
        """Return those of some states that spend three quarters of a limit, `[N, quantizers]`; all if few of them do.

        Example:
            >>> space = WidthSpace(("a",), ((2, 4, 8),), (np.zeros(3),), ())
            >>> space.spending([(0,), (2,)])
            array([[0],
                   [2]])
        """
        spent = self.fullness(states) >= SPENT if self.limits else np.ones(len(states), dtype=bool)
        return np.array(states)[spent if spent.sum() >= LEAST else slice(None)]

    def feasible(self) -> Iterator[State]:
        """Every state that keeps the limits."""
        return filter(self.keeps, (tuple(map(int, s)) for s in np.ndindex(*(len(o) for o in self.options))))

    def neighbours(self, state: State) -> Iterator[State]:
        """States one step away that keep the limits.

        One quantizer goes an option up or down; where going up does not fit, another one goes down by as few options
        as make room. Among more than 64 quantizers, that is one of the `4096 / quantizers` that give up the least
        log-probability.
        """
        moves = [(place, step) for place in range(len(state)) for step in (1, -1)]
        moves = [(place, step) for place, step in moves if 0 <= state[place] + step < len(self.options[place])]
        states = [_moved(state, place, state[place] + step) for place, step in moves]
        if not states:
            return
        for (place, step), moved, kept in zip(moves, states, self._kept(np.array(states)), strict=True):
            if kept:
                yield moved
            elif step == 1:
                yield from self._paid(moved, place)

    def _paid(self, state: State, raised: int) -> Iterator[State]:
        others = [place for place in range(len(state)) if place != raised]
        lower = [(place, option) for place in others for option in range(state[place] - 1, -1, -1)]
        if not lower:
            return
        states = np.repeat([state], len(lower), axis=0)
        places, options = np.array(lower).T
        states[np.arange(len(lower)), places] = options
        kept = np.flatnonzero(self._kept(states))
        least = kept[np.unique(places[kept], return_index=True)[1]]  # of each place, the least step down
        most = MOST_STEPS // len(state)
        if len(least) > most:
            drops = ((self.log_probs[p], state[p], option) for p, option in (lower[k] for k in least))
            given_up = [log_probs[own] - log_probs[option] for log_probs, own, option in drops]
            least = np.sort(least[np.argsort(given_up, kind="stable")[:most]])
        for first in least:
            yield _moved(state, *lower[first])


def _moved(state: State, place: int, option: int) -> State:
    return (*state[:place], option, *state[place + 1 :])


class StateCost:
    """Costs of states, what each layer adds looked up instead of asked for again.

    Args:
        layers: of the network.
        cost: the cost.
        space: names and options of the quantizers; its limits do not matter.
    """

    def __init__(self, layers: Sequence[Layer], cost: costs.Cost, space: WidthSpace) -> None:
        self.cost = costs.as_network_cost(cost)
        place = {name: k for k, name in enumerate(space.names)}
        place |= {name: place[site] for name, site in space.sites.items()}
        self.tables = []
        for layer in layers:
            own = {name: place[name] for name in (layer.weight, layer.input, layer.reads) if name in place}
            places = sorted(set(own.values()))
            sizes = [len(space.options[k]) for k in places]
            table = np.empty(sizes)
            for index in np.ndindex(*sizes):
                widths = {name: space.options[k][index[places.index(k)]] for name, k in own.items()}
                table[index] = costs.part(layer, layers, widths, cost)
            self.tables.append((places, table))

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """Costs `[N]` of states `[N, quantizers]`; each is `cost.total` of its widths to the last bit."""
        each = np.empty((len(self.tables), len(states)))
        for row, (places, table) in zip(each, self.tables, strict=True):
            row[:] = table[tuple(states[:, k] for k in places)]
        return np.asarray(self.cost.aggregate(each))  # summed in the order of the layers, as `cost.total` does
