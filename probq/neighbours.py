"""The choices of widths that a refinement looks at: options of every quantizer, and steps from one choice to others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

State: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Space:
    """Choices of one option for each quantizer.

    Attributes:
        names: of the quantizers.
        options: bits of every option of each quantizer, from narrow to wide.
        log_probs: log-probability of every option in nats.
        limits: cost of widths and greatest allowed cost, a pair for each limit.
        sites: for each tied quantizer, the one whose width it shares.
    """

    names: tuple[str, ...]
    options: tuple[tuple[Any, ...], ...]
    log_probs: tuple[np.ndarray, ...]
    limits: tuple[tuple[Callable[[Mapping[str, Any]], float], float], ...]
    sites: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of states, whatever they cost."""
        return math.prod(len(options) for options in self.options)

    def widths(self, state: State) -> dict[str, Any]:
        """Bits of every quantizer."""
        own = {n: options[k] for n, options, k in zip(self.names, self.options, state, strict=True)}
        return own | {name: own[site] for name, site in self.sites.items()}

    def log_prob(self, state: State) -> float:
        """Log-probability in nats."""
        return float(sum(log_probs[k] for log_probs, k in zip(self.log_probs, state, strict=True)))

    def costs(self, state: State) -> list[float]:
        """Cost under each limit, in its own unit."""
        widths = self.widths(state)
        return [cost(widths) for cost, _ in self.limits]

    def keeps(self, state: State) -> bool:
        """Whether every limit is kept."""
        return all(cost <= limit for cost, (_, limit) in zip(self.costs(state), self.limits, strict=True))

    def fullness(self, state: State) -> float:
        """Largest share of a limit that is used."""
        return max((c / limit for c, (_, limit) in zip(self.costs(state), self.limits, strict=True)), default=0.0)

    def feasible(self) -> Iterator[State]:
        """Every state that keeps the limits."""
        return filter(self.keeps, (tuple(map(int, s)) for s in np.ndindex(*(len(o) for o in self.options))))

    def neighbours(self, state: State) -> Iterator[State]:
        """States one step away that keep the limits.

        One quantizer goes an option up or down; where going up does not fit, another one goes down by as few options
        as make room.
        """
        for place in range(len(state)):
            for step in (1, -1):
                moved = _moved(state, place, state[place] + step)
                if not 0 <= moved[place] < len(self.options[place]):
                    continue
                if self.keeps(moved):
                    yield moved
                elif step == 1:
                    yield from self._paid(moved, place)

    def _paid(self, state: State, raised: int) -> Iterator[State]:
        for place in range(len(state)):
            lower = (_moved(state, place, option) for option in range(state[place] - 1, -1, -1))
            found = next(filter(self.keeps, lower), None) if place != raised else None
            if found is not None:
                yield found


def _moved(state: State, place: int, option: int) -> State:
    return (*state[:place], option, *state[place + 1 :])
