"""The budget: an upper limit on the cost, of its expectation or of most draws."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

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
        probability: None for `E[cost] <= limit` in training; a number `p` for `P(cost <= limit) >= p`, held under the
            fitted posterior (a chance constraint, see `probq.chance.Chance`). Decisions keep the limit either way.

    Raises:
        ProbqError: unless exactly one of `percent` and `limit` is given, as a positive finite number, and the
            probability, if any, lies between 0 and 1.

    Example:
        >>> Budget(percent=0.4)
        Budget(percent=0.4, limit=None)
    """

    percent: float | None = None
    limit: float | None = None
    cost: costs.Cost = costs.bops
    probability: float | None = None

    def __post_init__(self) -> None:
        if (self.percent is None) == (self.limit is None):
            raise ProbqError("a budget takes either percent=... or limit=..., one of the two")
        value = self.percent if self.limit is None else self.limit
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
            raise ProbqError(f"a budget must be a positive number, not {value!r}")
        p = self.probability
        if p is not None and (not isinstance(p, int | float) or isinstance(p, bool) or not 0 < p < 1):
            raise ProbqError(f"a budget's probability lies between 0 and 1, both excluded, and is not {p!r}")

    def __repr__(self) -> str:
        name = "" if self.cost is costs.bops else f", cost={costs.name(self.cost)}"
        chance = "" if self.probability is None else f", probability={self.probability}"
        return f"Budget(percent={self.percent}, limit={self.limit}{name}{chance})"

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
