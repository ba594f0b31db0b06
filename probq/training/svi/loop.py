"""A loop takes one network through its steps: a batch, its loss, the gradient, and a record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from probq.cost.budget import Budgets
from probq.network.quantized.quantized import Quantized
from probq.rules import Rule
from probq.training.distillation import Lessons
from probq.training.ptq.batch_norm import estimate_before_use
from probq.training.svi.budget_terms import BudgetTerms
from probq.training.svi.course import Course
from probq.training.svi.history import Step
from probq.training.svi.objective import Objective
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
        draws: of widths and codes in each step.
        lessons: of a teacher, or None.
        teaches_on: whether the teacher learns or moves itself.
    """

    def __init__(
        self,
        q: Quantized,
        data: Batches,
        budget: Budgets,
        draws: int,
        lessons: Lessons | None = None,
        teaches_on: bool = True,
    ) -> None:
        self.q, self.data, self.lessons, self.teaches_on = q, data, lessons, teaches_on
        self.budgets = BudgetTerms(q, budget)
        self.objective = Objective(q, data.size, draws)
        self.batches = Reading(data)
        self.good = _copied(q)
        self.good_step = 0

    def search(self, optimizer: Any, schedule: Any, rule: Rule, last: int, course: Course) -> Iterator[Step]:
        """Learn widths in steps 0 to `last - 1`.

        Args:
            optimizer: of the network's parameters, gates included.
            schedule: of its learning rates, or None.
            rule: how the budget is enforced.
            last: number of steps.
            course: of the fit.
        """
        self.budgets.begin(rule, last)
        try:
            parts = {"optimizer": optimizer, "budgets": self.budgets} | ({"schedule": schedule} if schedule else {})
            left = course.enter("search", range(last), parts)
            self._take_for_good(course)
            for number in left:
                step = self._step(optimizer, number, "search", settling=number >= last // 2)
                if schedule is not None:
                    schedule.step()
                course.next = number + 1
                yield step
            self.budgets.keep_chances()
        finally:
            self.budgets.end()

    def tune(self, optimizer: Any, schedule: Any, left: range, course: Course) -> Iterator[Step]:
        """Train at fixed widths; batch normalisation is folded after the last step, unless it was before."""
        self._take_for_good(course)
        for number in left:
            step = self._step(optimizer, number, "tune")
            schedule.step()
            if number == left[-1]:  # weights that change codes until the end would spoil earlier statistics
                self.fold()
            course.next = number + 1
            yield step

    def _take_for_good(self, course: Course) -> None:
        """Take the present state for the last good one if it is a checkpoint's."""
        if course.resumed:
            self.good, self.good_step = _copied(self.q), course.next

    def fold(self) -> None:
        """Estimate and fold batch normalisation, unless it is folded."""
        estimate_before_use(self.q, self.data)
        self.q.folded = True
        self.q.train()

    def _step(self, optimizer: Any, number: int, phase: str, settling: bool = False) -> Step:
        x, y = next(self.batches)
        optimizer.zero_grad(set_to_none=True)
        bound = self.objective(x, y, self.lessons.lesson(x, self.teaches_on) if self.lessons else None)
        self._check(bound.value, number)
        loss = self.budgets.add_to(bound.value, number, bound.probs)
        self._check(loss, number)
        if number % SNAPSHOT_EVERY == 0:
            self.good, self.good_step = _copied(self.q), number
        self.objective.backward(loss, bound, settling)
        self.budgets.move_gates(number)
        optimizer.step()
        self._check_moved(optimizer, number)
        if self.lessons and self.teaches_on:
            self.lessons.study(bound.law, y, 1.0)
            self.lessons.move()
        limits = self.budgets.standing()
        return Step(
            number,
            number // len(self.data),
            phase,
            float(loss.detach()),
            bound.nll,
            float(bound.value.detach()) - bound.data,
            limits[0].percent if limits else self.budgets.percent(),
            limits[0].limit if limits else None,
            limits[0].multiplier if limits else 0.0,
            limits[1:],
            bound.taught,
        )

    def _check(self, loss: Tensor, number: int) -> None:
        """Stop at a loss that is not finite, with the last good state restored."""
        if not torch.isfinite(loss):
            raise self._stopped(f"the loss became {float(loss.detach())} at step {number}")

    def _check_moved(self, optimizer: Any, number: int) -> None:
        """Stop where a gradient moved a parameter to what is not finite, however good the loss was."""
        moved = [p.detach() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
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


def _copied(q: Quantized) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in q.state_dict().items()}
