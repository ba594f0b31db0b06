"""A budget is an upper limit on the cost, on its expectation or on most draws."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from probq import cost as costs
from probq.network.tracing.layer import Layer
from probq.utils.arguments import is_real
from probq.utils.errors import ProbqError


@dataclass(frozen=True)
class Budget:
    """A budget limits the cost of a network.

    Args:
        percent: limit in percent of the network with 32-bit weights and inputs.
        limit: limit in the cost's own unit. Give one of the two.
        cost: the cost, by default bit operations.
        probability: None for `E[cost] <= limit` in training; a number `p` for `P(cost <= limit) >= p`, held under the
            fitted posterior (a chance constraint; with channels that may be pruned, by the bound that counts them as if
            they were there). Decisions keep the limit either way.

    Raises:
        ProbqError: unless exactly one of `percent` and `limit` is given, as a positive finite number, and the
            probability, if any, lies between 0 and 1, and the cost is one.

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
        if not is_real(value) or not math.isfinite(value) or value <= 0:
            raise ProbqError(f"a budget must be a positive number, not {value!r}")
        if not callable(self.cost):
            raise ProbqError(f"a budget's cost is one of probq.cost, such as probq.cost.storage, not {self.cost!r}")
        p = self.probability
        if p is not None and (not is_real(p) or not 0 < p < 1):
            raise ProbqError(f"a budget's probability lies between 0 and 1, both excluded, and is not {p!r}")
        for name in ("percent", "limit", "probability"):
            number = getattr(self, name)
            if isinstance(number, np.generic):  # files and messages take Python's numbers
                object.__setattr__(self, name, number.item())

    def __repr__(self) -> str:
        name = "" if self.cost is costs.bops else f", cost={costs.name(self.cost)}"
        chance = "" if self.probability is None else f", probability={self.probability}"
        return f"Budget(percent={self.percent}, limit={self.limit}{name}{chance})"

    def absolute(self, layers: Iterable[Layer]) -> float:
        """Return the limit in the cost's own unit, for a network with these layers.

        Raises:
            ProbqError: if it is a percentage of nothing.
        """
        return _share(self.percent, self.full(layers)) if self.limit is None else float(self.limit)

    def full(self, layers: Iterable[Layer]) -> float:
        """Return the cost of the 32-bit network, to which a percentage refers.

        Raises:
            ProbqError: if that is nothing.
        """
        full = costs.full(layers, self.cost)
        if not full > 0:
            raise ProbqError(
                f"the 32-bit network costs {full:g} {costs.name(self.cost)}, so there is nothing to limit; give the "
                "budget another cost"
            )
        return full


def _share(percent: float | None, full: float) -> float:
    """Return the largest cost with `100 * cost / full <= percent` in floating point, as `Assignment.percent` divides.

    So what costs `a.percent()` keeps `Budget(percent=a.percent())`, and nothing that keeps a budget shows more.
    """
    assert percent is not None
    limit = percent / 100 * full
    while 100 * limit / full > percent:
        limit = math.nextafter(limit, 0)
    while 100 * math.nextafter(limit, math.inf) / full <= percent:
        limit = math.nextafter(limit, math.inf)
    return limit


Budgets: TypeAlias = Budget | Iterable[Budget] | None


def budgets(budget: Any) -> tuple[Budget, ...]:
    """Return all limits of what a user gave: none, one, or several that hold at once.

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


def one_or_several(budget: Budgets) -> Budget | tuple[Budget, ...] | None:
    """Return what a user gave as one budget, a tuple of several, or None."""
    several = budgets(budget)
    return several if len(several) > 1 else several[0] if several else None
