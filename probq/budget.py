"""The budget: an upper limit on the cost, and the rule that enforces it in training."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from probq import cost as costs
from probq.errors import ProbqError
from probq.layers import Layer


@dataclass(frozen=True)
class Budget:
    """An upper limit on the cost of a network.

    Args:
        percent: limit in percent of the network with 32-bit weights and inputs.
        limit: limit in the cost's own unit. Give one of the two.
        cost: the cost, by default bit operations.

    Raises:
        ProbqError: unless exactly one of `percent` and `limit` is given, as a positive finite number.

    Example:
        >>> Budget(percent=0.4)
        Budget(percent=0.4, limit=None)
    """

    percent: float | None = None
    limit: float | None = None
    cost: costs.Cost = costs.bops

    def __post_init__(self) -> None:
        if (self.percent is None) == (self.limit is None):
            raise ProbqError("a budget takes either percent=... or limit=..., one of the two")
        value = self.percent if self.limit is None else self.limit
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
            raise ProbqError(f"a budget must be a positive number, not {value!r}")

    def __repr__(self) -> str:
        name = "" if self.cost is costs.bops else f", cost={costs.name(self.cost)}"
        return f"Budget(percent={self.percent}, limit={self.limit}{name})"

    def absolute(self, layers: Iterable[Layer]) -> float:
        """The limit in the cost's own unit, for a network with these layers."""
        if self.limit is not None:
            return float(self.limit)
        assert self.percent is not None
        return self.percent / 100 * costs.full(layers, self.cost)


Budgets: TypeAlias = Budget | Iterable[Budget] | None


def budgets(budget: Any) -> tuple[Budget, ...]:
    """All limits of what a user gave: none, one, or several that hold at once.

    Args:
        budget: None, a `Budget`, or a list of them.

    Raises:
        ProbqError: if it is something else.

    Example:
        >>> budgets([Budget(percent=0.4), Budget(limit=8000, cost=costs.storage)])
        (Budget(percent=0.4, limit=None), Budget(percent=None, limit=8000, cost=storage))
    """
    several = () if budget is None else (budget,) if isinstance(budget, Budget) else budget
    if not isinstance(several, list | tuple) or not all(isinstance(member, Budget) for member in several):
        raise ProbqError(f"a budget is a probq.Budget or a list of them, not {budget!r}")
    return tuple(several)


class DualAscent:
    """Enforces `E[cost] <= limit` by an augmented Lagrangian on `g = log(E[cost] / limit)`, its limit ramped down.

    The loss gains `multiplier * g + penalty / 2 * max(g, 0)^2`; after each step the multiplier rises by `rate * g`,
    never below 0. The ramp runs geometrically from the starting cost to the limit over the first part of the steps:
    a tight limit from the start collapses a network with a 0-bit rung.

    Args:
        start: E[cost] before training.
        limit: the limit to reach.
        ramp: number of steps until the full limit holds.
        rate: step size of the multiplier.
        penalty: weight of the quadratic term.

    Source: D. P. Bertsekas, 1982, "Constrained Optimization and Lagrange Multiplier Methods".
    """

    def __init__(self, start: float, limit: float, ramp: int, rate: float = 0.01, penalty: float = 1.0) -> None:
        self.start, self.limit, self.ramp, self.rate, self.penalty = start, limit, ramp, rate, penalty
        self.multiplier = 0.0

    def limit_at(self, step: int) -> float:
        """The limit in force at a step."""
        done = min(1.0, (step + 1) / max(self.ramp, 1))
        return float(max(self.start, self.limit) ** (1 - done) * self.limit**done)

    def term(self, expected: Tensor, step: int) -> Tensor:
        """What the loss gains at a step, a scalar; moves the multiplier."""
        gap = torch.log(expected / self.limit_at(step))
        loss = self.multiplier * gap + self.penalty / 2 * gap.clamp_min(0) ** 2
        self.multiplier = max(0.0, self.multiplier + self.rate * float(gap.detach()))
        return loss
