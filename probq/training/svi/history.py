"""A history keeps what happened during a fit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import pandas


@dataclass(frozen=True)
class BudgetState:
    """One limit in one training step, where several hold at once: `percent`, `limit` and `multiplier` as in `Step`."""

    percent: float
    limit: float
    multiplier: float


@dataclass(frozen=True)
class Step:
    """A step records one step of training.

    Attributes:
        step, epoch: counted from 0.
        phase: "search" while widths are learned, "trial" while the best choices are tuned on copies, one after the
            other, "tune" once one is fixed.
        loss: negative ELBO for one example in nats, plus the budget's term.
        nll: negative log-likelihood for one example in nats.
        kl: temperature times all Kullback-Leibler terms for one example, in nats.
        percent: E[cost] in percent of the 32-bit network; of several budgets, that of the first.
        limit: the limit in force in percent, or None without a budget.
        multiplier: of the budget.
        further: the same for the second budget and every further one, each in percent of its own cost.
        distillation: the teacher's part of the loss before its weight, `T^2 KL(teacher || network)` for one example in
            nats; 0 without a teacher.
    """

    step: int
    epoch: int
    phase: str
    loss: float
    nll: float
    kl: float
    percent: float
    limit: float | None
    multiplier: float
    further: tuple[BudgetState, ...] = ()
    distillation: float = 0.0


@dataclass
class History:
    """A history holds the steps and validation records of a fit, in order.

    Attributes:
        steps: every training step.
        validation: for each validated epoch: epoch, loss (nats for one example), accuracy where targets are classes.
        settings: the arguments that matter: epochs, temperature, budget, seed.
    """

    steps: list[Step] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pandas.DataFrame:
        """One row a step; columns of a second budget are "percent 2", "limit 2", "multiplier 2", and so on."""
        return pandas.DataFrame([_row(step) for step in self.steps])

    def plot(self, ax: Any = None) -> Any:
        """Loss and expected cost over the steps; see `probq.plot.history`."""
        from probq import plot

        return plot.history(self, ax=ax)

    def __repr__(self) -> str:
        if not self.steps:
            return "History(no steps)"
        last = self.steps[-1]
        return f"History({len(self.steps)} steps, loss {last.loss:.4g}, E[cost] {last.percent:.4g} %)"


def _row(step: Step) -> dict[str, Any]:
    row = asdict(step)
    for number, state in enumerate(row.pop("further"), 2):
        row |= {f"{name} {number}": value for name, value in state.items()}
    return row
