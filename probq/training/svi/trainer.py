"""A trainer holds what all loops of a fit share, and trains in two ways: searching for widths, and at fixed ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from probq.cost.budget import Budgets
from probq.decisions.held_gates import hold_gates
from probq.network.quantized.quantized import Quantized
from probq.rules import Rule
from probq.training.distillation import Lessons
from probq.training.processes.alone import Processes
from probq.training.ptq.batch_norm import has_norms
from probq.training.svi.course import Course, Parts
from probq.training.svi.history import Step
from probq.training.svi.loop import Loop
from probq.training.svi.updates import Updates
from probq.utils.batches import Batches


@dataclass(frozen=True)
class Trainer:
    """Trains networks alike: the one that is fitted, and in trials copies of it.

    Args:
        data: the batches.
        budget: limit on the expected cost, several, or None.
        rule: enforces it in the search.
        updates: how gradients move parameters.
        draws: of widths and codes for each batch; from 2 on, their laws have the gradient of `leave_one_out`.
        rounding: whether codes are rounded at fixed widths, or drawn.
        lessons: of a teacher, or None.
        accumulate: number of batches of a step.
        tunes: whether widths that were learned are tuned afterwards.
        processes: of the fit.
    """

    data: Batches
    budget: Budgets
    rule: Rule
    updates: Updates
    draws: int = 1
    rounding: bool = True
    lessons: Lessons | None = None
    accumulate: int = 1
    tunes: bool = True
    processes: Processes = field(default_factory=Processes)

    def loop(self, q: Quantized, trial: bool = False) -> Loop:
        """Return the loop of one network, from the first batch on; in a trial the teacher stays as it is."""
        return Loop(q, self.data, self.budget, self.draws, self.lessons, not trial, self.accumulate, self.processes)

    def search(self, loop: Loop, steps: int, course: Course) -> Iterator[Step]:
        """Learn widths for a number of steps; with several draws the rates fall with a cosine."""
        self.begin_search(loop)
        yield from loop.search(self.updates.search(loop.q, steps, self.draws > 1), self.rule, steps, course)

    def begin_search(self, loop: Loop) -> None:
        """Make a network ready to learn its widths."""
        for _, quantizer in loop.q.named_quantizers():
            quantizer.tuned = None
        hold_gates(loop.q, self.budget)
        restore_spreads(loop.q)
        loop.q.rounding = self.rounding and self.tunes and self.draws == 1 and _draws_for_noise_alone(loop.q)

    def tune(self, loop: Loop, numbers: range, course: Course, trial: Parts | None = None) -> Iterator[Step]:
        """Train at fixed widths, in the numbered steps, while the rates follow their schedule.

        Args:
            loop: of the network.
            numbers: of the steps.
            course: of the fit.
            trial: what else a checkpoint keeps where the steps are those of a trial.
        """
        phase = "tune" if trial is None else "trial"
        if course.kept(phase) is None:
            self.begin_tuning(loop)
        descent = self.updates.tuning(loop.q, len(numbers))
        left = course.enter(phase, numbers, {**descent.parts, **(trial or {})})
        loop.q.train()
        yield from loop.tune(descent, left, course)

    def begin_tuning(self, loop: Loop) -> None:
        """Make a network ready to be trained at the widths that are fixed."""
        q = loop.q
        if _folds_late(q):
            q.folded = False
        else:
            loop.fold()
        for _, quantizer in q.named_quantizers():
            quantizer.tuned = None if quantizer.fixed is None else quantizer.fixed.clone()
        q.rounding = self.rounding
        if not q.rounding:
            restore_spreads(q)


def _folds_late(q: Quantized) -> bool:
    """Return whether normalisation can be folded when all is learned: integer multipliers follow its gains, codes stay.

    Scales in powers of two do not follow, so that the folded network has to be trained.
    """
    folded = [layer.weight for layer in q.layers if layer.norm]
    return bool(folded) and has_norms(q) and all(q.weights[name].multipliers > 1 for name in folded)


def _draws_for_noise_alone(q: Quantized) -> bool:
    """Return whether draws of codes would be nothing but noise to a search that is tuned afterwards.

    A cold posterior of usual codes is as narrow at its end as at its start, and rounding tells the gates as much.
    """
    usual = (w.chosen_estimator is None and w.code_prior_law is None and not w.free_codes for w in q.weights.values())
    return q.temperature < 1 and all(usual)


def make_codes_certain(q: Quantized) -> None:
    """Leave the posterior that was fitted: codes that were rounded to the end are certain."""
    if q.rounding and _draws_for_noise_alone(q):
        for quantizer in q.weights.values():
            quantizer.make_certain()


def restore_spreads(q: Quantized) -> None:
    """Give codes that the last fit rounded a law to draw from again."""
    for quantizer in q.weights.values():
        quantizer.restore_spread()
