"""The budgets' part of the loss, and where each budget stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from probq import cost as costs
from probq.cost.budget import Budgets, budgets
from probq.network.program.program import Program
from probq.rules import Mover, Rule, State
from probq.training.svi.budget_constraint import BudgetConstraint, enforce_chance
from probq.training.svi.history import BudgetState


class BudgetTerms:
    """All budgets of a network: what they add to the loss in a search, and where they stand in every step.

    Args:
        q: the network.
        budget: a limit, several, or None.
    """

    def __init__(self, q: Program, budget: Budgets) -> None:
        self.q = q
        self.constraints = tuple(BudgetConstraint(q, own) for own in budgets(budget))
        self.tables = q.cost_tables()  # of bit operations, shown where nothing is limited
        self.states: tuple[State, ...] = ()
        self.mover: Mover | None = None
        self.expected: list[Tensor] = []
        self.limits: list[float] = []

    def begin(self, rule: Rule, steps: int) -> None:
        """Start a search of a number of steps under a rule."""
        self.states = tuple(rule.begin(c.start(), c.limit, steps) for c in self.constraints)
        self.mover = rule.mover(self.q, steps) if self.states else None

    def state_dict(self) -> dict[str, Any]:
        """Return where the limits stand in a search."""
        return {
            "states": [state.state_dict() for state in self.states],
            "mover": None if self.mover is None else self.mover.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave, once the search is begun."""
        for own, state in zip(self.states, state_dict["states"], strict=True):
            own.load_state_dict(state)
        if self.mover is not None:
            self.mover.load_state_dict(state_dict["mover"])

    def keep_chances(self) -> None:
        """Make the budgets that promise a chance keep it, at the end of a search."""
        enforce_chance(self.q, self.constraints)

    def end(self) -> None:
        """End a search, however it ended."""
        if self.mover is not None:
            self.mover.close()
        self.states, self.mover = (), None

    def add_to(self, loss: Tensor, step: int, probs: Mapping[str, Tensor]) -> Tensor:
        """The loss with a term for each budget, which at fixed widths is none, given the probability of every rung."""
        self.expected = [c.expected(probs) for c in self.constraints]
        self.limits = [state.limit_at(step) for state in self.states] or [c.limit for c in self.constraints]
        for state, constraint, mean, limit in zip(
            self.states, self.constraints, self.expected, self.limits, strict=False
        ):
            loss = loss + state.term(constraint.gap(mean, limit), step)
        return loss

    def move_gates(self, step: int) -> None:
        """Let the rule move the gates, if it does so in the optimizer's stead."""
        if self.mover is not None:
            exceeded = any(c.hard() > limit for c, limit in zip(self.constraints, self.limits, strict=True))
            self.mover.move(exceeded, step)

    def standing(self) -> tuple[BudgetState, ...]:
        """Where every limit stands, if there is any; no multiplier is at work once widths are fixed."""
        multipliers = [state.multiplier for state in self.states] or [0.0] * len(self.limits)
        rows = zip(self.constraints, self.expected, self.limits, multipliers, strict=False)
        return tuple(
            BudgetState(float(mean.detach()) * 100 / c.full, limit * 100 / c.full, multiplier)
            for c, mean, limit, multiplier in rows
        )

    @torch.no_grad()
    def percent(self) -> float:
        """Expected bit operations in percent, for where nothing limits a cost."""
        return float(costs.percent(float(self.q.expected_cost(self.tables)), self.q.layers))
