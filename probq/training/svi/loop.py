"""A loop takes one network through its steps: a batch, its loss, the gradient, and a record."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from probq.cost.budget import Budgets
from probq.network.quantized.quantized import Quantized
from probq.rules import Rule
from probq.training.distillation import Lessons
from probq.training.processes.alone import Processes, StepMeans
from probq.training.ptq.batch_norm import estimate_before_use
from probq.training.svi.budget_terms import BudgetTerms
from probq.training.svi.course import Course
from probq.training.svi.history import BudgetState, Step
from probq.training.svi.objective import Objective
from probq.training.svi.updates import Descent
from probq.utils.arguments import check_number
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError
from probq.utils.reading import Reading

SNAPSHOT_EVERY = 25


class Loop:
    """A loop makes the steps of a network, over both phases of a fit or in a trial.

    Args:
        q: the network, with a likelihood and scales.
        data: the batches, read again and again.
        budget: a limit on the expected cost, several, or None.
        draws: of widths and codes for each batch.
        lessons: of a teacher, or None.
        teaches_on: whether the teacher learns or moves itself.
        accumulate: number of batches of one step; the last one of a pass over the data may have fewer.
        processes: of the fit, each with its batches; by default one alone.
    """

    def __init__(
        self,
        q: Quantized,
        data: Batches,
        budget: Budgets,
        draws: int,
        lessons: Lessons | None = None,
        teaches_on: bool = True,
        accumulate: int = 1,
        processes: Processes | None = None,
    ) -> None:
        self.q, self.data, self.lessons, self.teaches_on = q, data, lessons, teaches_on
        self.processes = processes or Processes()
        self.accumulate, self.per_epoch = accumulate, steps_per_epoch(data, accumulate)
        self.budgets = BudgetTerms(q, budget)
        self.objective = Objective(q, data.size, draws, self.processes)
        self.batches = Reading(data, self.processes.apart)
        self.good = _copied(q)
        self.good_step = 0
        self.descent: Descent | None = None

    def search(self, descent: Descent, rule: Rule, last: int, course: Course) -> Iterator[Step]:
        """Learn widths in steps 0 to `last - 1`.

        Args:
            descent: of the network's parameters, gates included.
            rule: how the budget is enforced.
            last: number of steps.
            course: of the fit.
        """
        self.budgets.begin(rule, last)
        try:
            left = course.enter("search", range(last), {"budgets": self.budgets, **descent.parts})
            self._begin(descent, course)
            for number in left:
                step = self._step(descent, number, "search", settling=number >= last // 2)
                if number == last - 1:
                    descent.end()
                course.next = number + 1
                yield step
            self.budgets.keep_chances()
        finally:
            self.budgets.end()

    def tune(self, descent: Descent, left: range, course: Course) -> Iterator[Step]:
        """Train at fixed widths; batch normalisation is folded after the last step, unless it was before."""
        self._begin(descent, course)
        for number in left:
            step = self._step(descent, number, "tune")
            if number == left[-1]:  # weights that change codes until the end would spoil earlier statistics
                descent.end()
                self.fold()
            course.next = number + 1
            yield step

    def _begin(self, descent: Descent, course: Course) -> None:
        """Go down from here, which is the last good state if it is a checkpoint's."""
        self.descent, course.averaged = descent, descent.averaged
        if course.resumed:
            self.good, self.good_step = _copied(self.q), course.next

    def stop(self) -> None:
        """End the phase where it stands."""
        if self.descent is not None:
            self.descent.end()

    def fold(self) -> None:
        """Estimate and fold batch normalisation, unless it is folded."""
        self.processes.together(lambda: estimate_before_use(self.q, self.data))
        self.processes.align(self.q)
        self.q.folded = True
        self.q.train()

    def _step(self, descent: Descent, number: int, phase: str, settling: bool = False) -> Step:
        descent.clear()
        means = self._means(number, settling)
        if not math.isfinite(means.loss):
            where = "" if means.odd is None else f" in process {means.odd}"
            raise self._stopped(f"the loss became {means.loss}{where} at step {number}")
        if number % SNAPSHOT_EVERY == 0:
            self.good, self.good_step = _copied(self.q), number
        self.budgets.move_gates(number)
        descent.move()
        self._check_moved(descent, number)
        descent.go_on(means.loss)
        if self.lessons and self.teaches_on:
            self.lessons.move()
        limits = self.budgets.standing()
        first = limits[0] if limits else BudgetState(self.budgets.percent(), math.nan, 0.0)
        return Step(
            number,
            number // self.per_epoch,
            phase,
            means.loss,
            means.nll,
            means.kl,
            first.percent,
            first.limit if limits else None,
            first.multiplier,
            limits[1:],
            means.taught,
        )

    def _means(self, number: int, settling: bool) -> StepMeans:
        """Give all parameters their gradients, and return the means over the step's examples, of all processes."""
        if self.processes.count == 1:
            return self._own_means(self._batches(number), number, settling)
        moved, statistics = self._shared()
        try:
            found = self._batches(number)
            with self.processes.apart():
                own = self._own_means(found, number, settling)
        except Exception as error:
            self.processes.stop(error, moved, statistics)
            raise
        return self.processes.exchange(own, moved, statistics)

    def _shared(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return what gradients move, and what a step moves besides: statistics of normalisation, a teacher's too."""
        moved: list[Tensor] = [p for p in self.q.parameters() if p.requires_grad]
        statistics = [b for b in self.q.net.buffers() if b.is_floating_point()]
        if self.lessons and self.teaches_on:
            moved, statistics = [*moved, *self.lessons.moved], [*statistics, *self.lessons.statistics]
        return moved, statistics

    def _own_means(self, found: list[tuple[Any, Tensor]], number: int, settling: bool) -> StepMeans:
        """Add up the gradients of this process's batches; those after a loss that is not finite are left out."""
        examples = sum(len(y) for _, y in found)
        loss = nll = kl = taught = 0.0
        for place, (x, y) in enumerate(found):
            share = len(y) / examples
            bound = self.objective(x, y, self.lessons.lesson(x, self.teaches_on) if self.lessons else None)
            part = bound.value if share == 1 else bound.value * share
            if not place:
                part = self.budgets.add_to(part, number, bound.probs)
            loss, nll, taught = loss + float(part.detach()), nll + share * bound.nll, taught + share * bound.taught
            kl += share * (float(bound.value.detach()) - bound.data)
            if not math.isfinite(loss):
                break
            self.objective.backward(part, bound, settling, share)
            if self.lessons and self.teaches_on:
                self.lessons.study(bound.law, y, share)
        return StepMeans(loss, nll, kl, taught, examples)

    def _batches(self, number: int) -> list[tuple[Any, Tensor]]:
        """Return the batches of a step."""
        before = number % self.per_epoch * self.accumulate
        return [next(self.batches) for _ in range(min(self.accumulate, len(self.data) - before))]

    def _check_moved(self, descent: Descent, number: int) -> None:
        """Stop where a gradient moved a parameter to what is not finite, however good the loss was."""
        moved = descent.moved()
        if moved and not torch.isfinite(nn.utils.get_total_norm(moved, torch.inf)):
            name = next(n for n, p in self.q.named_parameters() if not p.detach().isfinite().all())
            raise self._stopped(f"a gradient at step {number} made {name} infinite or not a number")

    def _stopped(self, what: str) -> ProbqError:
        """Restore the last good state, and make the error that says what happened."""
        self.q.load_state_dict(self.good, strict=False)
        return ProbqError(
            f"{what}; the network keeps its state of step {self.good_step}. Lower the learning rates "
            "(rates=probq.Rates(...)) or check the data"
        )


def steps_per_epoch(data: Batches, accumulate: int) -> int:
    """Return the number of steps of one pass over data, each of so many batches."""
    check_number("accumulate", accumulate, 1)
    return -(-len(data) // accumulate)


def _copied(q: Quantized) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in q.state_dict().items()}
