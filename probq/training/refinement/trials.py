"""Trials tune each of the best few choices of widths for a while, since tuning changes their order."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from probq.decisions.widths import fix_widths
from probq.network.quantized.network_state import NetworkState, network_state, restore_network
from probq.network.quantized.quantized import Quantized
from probq.training.svi.course import Course, Parts
from probq.training.svi.history import Step
from probq.training.svi.trainer import Trainer

SHARE = 0.25  # of the tuning, for all trials together
FEWEST = 200  # steps of one trial; in fewer, chance decides


def steps_per_trial(tuning: int, number: int) -> int:
    """Steps of each of a number of trials, or 0: they are taken out of the tuning, and would be too short."""
    each = round(SHARE * tuning / number) if number > 1 else 0
    return each if each >= FEWEST else 0


class Trials:
    """Trials tune copies of a network at several choices of widths, one after the other, and take the best.

    All see the same batches in the same order, as far as torch's global random state decides it. An interrupt leaves
    the network as it was.

    Args:
        q: the network as the search left it; afterwards the best copy, its widths fixed.
        candidates: choices of widths, the most promising first.
        loss: of a tuned network.
        course: of the fit.

    Attributes:
        losses: of the trials that are done.
    """

    def __init__(
        self,
        q: Quantized,
        candidates: Sequence[Mapping[str, Any]],
        loss: Callable[[Quantized], float],
        course: Course,
    ) -> None:
        self.q, self.candidates, self.loss, self.course = q, candidates, loss, course
        self.random = torch.get_rng_state()
        self.losses: list[float] = []
        self.best: Quantized | None = None

    def run(self, trainer: Trainer, numbers: range, parts: Parts) -> Generator[Step, None, list[float]]:
        """Yield the steps of all trials, and return the loss of each.

        Args:
            trainer: trains every copy.
            numbers: of the steps; as many for each choice.
            parts: what else a checkpoint keeps.
        """
        kept = self.course.kept("trial")
        if kept is not None:
            self.load_state_dict(kept["trials"])
        each = len(numbers) // len(self.candidates)
        for place in range(len(self.losses), len(self.candidates)):
            torch.set_rng_state(self.random)
            tuned = copy.deepcopy(self.q)
            fix_widths(tuned, self.candidates[place])
            loop, own = trainer.loop(tuned, trial=True), numbers[place * each : (place + 1) * each]
            own_parts: Parts = {"network": NetworkState(tuned), "batches": loop.batches, "trials": self, **parts}
            for step in trainer.tune(loop, own, self.course, own_parts):
                yield replace(step, phase="trial")
            self._take(tuned, self.loss(tuned))
        assert self.best is not None
        fix_widths(self.q, self.candidates[self.losses.index(min(self.losses))])
        self.q.load_state_dict(self.best.state_dict(), strict=False)
        self.q.folded = self.best.folded
        return self.losses

    def _take(self, tuned: Quantized, loss: float) -> None:
        if self.best is None or loss < min(self.losses):
            self.best = tuned
        self.losses.append(loss)

    def state_dict(self) -> dict[str, Any]:
        """Return what the trials that are left depend on."""
        best = None if self.best is None else network_state(self.best)
        return {"random": self.random, "losses": list(self.losses), "best": best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self.random, self.losses = state_dict["random"], list(state_dict["losses"])
        if state_dict["best"] is not None:
            self.best = copy.deepcopy(self.q)
            restore_network(self.best, state_dict["best"])
