"""A best-first search finds a good one of many choices by measuring few, the most promising ones first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
from tqdm import tqdm

from probq.training.refinement.evidence.space import State, WidthSpace
from probq.training.refinement.prediction.choice_process import ChoiceProcess

ENUMERABLE = 20_000
NOISE = 1e-6

Measure: TypeAlias = Callable[[Mapping[str, Any]], float]


class BestFirstSearch:
    """A best-first search keeps the best choice of widths by measured loss, and every loss measured so far.

    Args:
        space: the choices.
        starts: choices to begin with, the most probable one first; they keep the limits.
        measure: loss of widths.
        evaluations: greatest number of losses to measure.
        survey: choices from everywhere within the limits, measured after the starts.
        kept_back: evaluations that steps from the best choice must leave.
    """

    def __init__(
        self,
        space: WidthSpace,
        starts: Sequence[State],
        measure: Measure,
        evaluations: int,
        survey: Sequence[State] = (),
        kept_back: int = 0,
    ) -> None:
        self.space, self.starts, self.measure, self.evaluations = space, starts, measure, evaluations
        self.survey, self.kept_back = survey, kept_back
        self.losses: dict[State, float] = {}
        self.record: dict[State, float] = {}  # with what was measured in a process before
        self.pause: Callable[[], None] = lambda: None  # called after each measurement

    @property
    def ranked(self) -> list[State]:
        """Return all states measured, that of least loss first; among equals the more probable one."""
        return sorted(self.losses, key=lambda state: (self.losses[state], -self.space.log_prob(state), state))

    @property
    def best(self) -> State:
        """Return the state of least loss. Before any is measured, the first start."""
        return self.ranked[0] if self.losses else self.starts[0]

    def run(self, progress: bool = False, name: str = "decide") -> State:
        """Measure until no step from the best state helps, or the evaluations are spent.

        Where no more states keep the limits than may be measured, all of them are. A progress bar bears the name.
        """
        every = self._every()
        first = [*list(self.starts)[: max(1, self.evaluations // 4)], *self.survey] if every is None else every
        most = self.evaluations - self.kept_back
        total = most if every is None else len(every)
        with tqdm(total=total, disable=not progress, unit="network", desc=name, dynamic_ncols=True) as bar:
            for state in dict.fromkeys(first):
                self._measured(state, bar)
            while every is None and len(self.losses) < most and (ahead := self._ahead()):
                self._measured(ahead[0], bar)
        return self.best

    def _every(self) -> list[State] | None:
        if self.space.size > max(self.evaluations, ENUMERABLE):
            return None
        found = list(islice(self.space.feasible(), self.evaluations + 1))
        if len(found) > self.evaluations:
            return None
        return sorted({*found, self.starts[0]}, key=lambda s: (-self.space.log_prob(s), s))

    def loss(self, state: State) -> float:
        """Return the loss of a state, measured once."""
        if state not in self.record:
            self.record[state] = self.measure(self.space.widths(state))
            self.pause()
        return self.losses.setdefault(state, self.record[state])

    def _measured(self, state: State, bar: Any) -> None:
        self.loss(state)
        bar.update()
        bar.set_postfix_str(f"loss {self.losses[self.best]:.4f}")

    def _ahead(self) -> list[State]:
        """Steps from the best state that were not measured, the most promising first, cheap ones first among equals."""
        states = [state for state in self.space.neighbours(self.best) if state not in self.losses]
        if not states:
            return []
        seen = list(self.losses)
        losses = np.array([self.losses[state] for state in seen])
        least = losses.min() if np.isfinite(losses.min()) else 0.0
        losses = np.minimum(losses, least + 10 * (1 + abs(least)))  # a network that broke must not set the scale
        guesses, unit = predict_losses(self.space, seen, losses, states)
        fullness = self.space.fullness(states)
        key = [(round(g / unit, 2), full, s) for g, full, s in zip(guesses, fullness, states, strict=True)]
        return [states[k] for k in sorted(range(len(states)), key=key.__getitem__)]


def predict_losses(
    space: WidthSpace, seen: Sequence[State], losses: np.ndarray, ahead: Sequence[State]
) -> tuple[np.ndarray, float]:
    """Losses expected of states that were not measured, and the spread of those that were.

    What a width did in one network is expected of it in others (`ChoiceProcess`).
    """
    own = np.array(seen)
    spread, of_spread = float(np.std(losses)), float(np.std(space.each_log_prob(own)))
    slope = spread / of_spread if spread and of_spread else 1.0
    return ChoiceProcess(own, losses, space.log_probs, slope, NOISE)(np.array(ahead)), spread or 1.0
