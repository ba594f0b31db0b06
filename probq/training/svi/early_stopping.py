"""A fit may stop early; it then ends at the best state that keeps its budgets."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from probq.cost.budget import Budgets, budgets
from probq.network.quantized.quantized import Quantized
from probq.training.svi.history import Step
from probq.utils.arguments import check_number
from probq.utils.errors import ProbqError

SLACK = 1e-6  # of a limit, for rounding


class EarlyStopping:
    """A fit stops once so many epochs in a row were no better on held-out data than the best one, whose state it takes.

    States of the last phase count alone, and of those only the feasible ones: in a tuning, widths that keep the limits;
    in a fit that is all search, also an expected cost within the full limits.

    Args:
        q: the network.
        patience: number of epochs, or None for a fit that takes its last state.
        budget: of the fit.
        validated: whether there is held-out data.

    Raises:
        ProbqError: if it is no number of epochs, or nothing is held out.
    """

    def __init__(self, q: Quantized, patience: int | None, budget: Budgets, validated: bool) -> None:
        if patience is not None:
            check_number("patience", patience, 1)
            if not validated:
                raise ProbqError("patience counts epochs without a lower loss on held-out data: give validation=...")
        self.q, self.patience = q, patience
        self.limits = [100 * own.absolute(q.layers) / own.full(q.layers) for own in budgets(budget)]
        self.loss, self.waited = math.inf, 0
        self.best: dict[str, Tensor] = {}

    @property
    def is_over(self) -> bool:
        """Return whether the fit is to stop."""
        return self.patience is not None and self.waited >= self.patience

    def take(self, step: Step, last: str, loss: float) -> None:
        """Take notice of the present state at the end of an epoch.

        Args:
            step: the epoch's last one.
            last: name of the fit's last phase.
            loss: on held-out data.
        """
        if self.patience is None or step.phase != last:
            return
        if loss < self.loss and self._is_feasible(step):
            self.loss, self.waited = loss, 0
            self.best = {name: tensor.detach().clone() for name, tensor in self.q.state_dict().items()}
        elif self.best:
            self.waited += 1

    def _is_feasible(self, step: Step) -> bool:
        costs = [step.percent, *(state.percent for state in step.further)]
        return all(cost <= limit * (1 + SLACK) for cost, limit in zip(costs, self.limits, strict=False))

    def restore(self) -> bool:
        """Give the network the best state, and return whether there is one."""
        if self.best:
            self.q.load_state_dict(self.best, strict=False)
        return bool(self.best)

    def state_dict(self) -> dict[str, Any]:
        """Return the best state, and since when it is the best."""
        return {"loss": self.loss, "waited": self.waited, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        device = self.q.device
        self.loss, self.waited = state_dict["loss"], state_dict["waited"]
        self.best = {name: tensor.to(device) for name, tensor in state_dict["best"].items()}
