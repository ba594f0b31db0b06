"""The price of cost is the least at which the expected cost over data keeps a limit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HALVINGS = 64


@dataclass(frozen=True)
class Scores:
    """Scores are estimates of losses in integers, `loss_k = unit * integers_k + means_k` nats.

    Attributes:
        integers: of all examples, int64 `[examples, branches]`.
        unit: nats of one of them.
        means: nats, `[branches]`.
        span: what two integers differ by at most.
        costs: of the branches, in one unit, `[branches]`.
    """

    integers: np.ndarray
    unit: float
    means: np.ndarray
    span: int
    costs: np.ndarray

    def offsets(self, price: float) -> np.ndarray:
        """Return what to add to the integers, int64 `[branches]`: `(means + price * costs) / unit`, least 0, rounded.

        Beyond `span` a branch is never chosen, so no offset is larger than `span + 1`.
        """
        real = (self.means + price * self.costs) / self.unit
        return np.minimum(np.floor(real - real.min() + 0.5), self.span + 1).astype(np.int64)

    def choices(self, offsets: np.ndarray) -> np.ndarray:
        """Return the branch of each example, the first one of least estimated loss plus price of its cost."""
        return (self.integers + offsets).argmin(1)

    def expected_cost(self, price: float) -> float:
        """Return the mean cost over the examples."""
        return float(self.costs[self.choices(self.offsets(price))].mean())


def least_price(scores: Scores, limit: float) -> float:
    """Return the least price, in nats for a unit of cost, at which the mean cost is at most the limit.

    Found by bisection. The estimated losses being fixed, a higher price never raises the mean cost, up to the rounding
    of offsets to whole units; at the highest, every example takes the cheapest branch, which is to keep the limit.
    Source: H. Everett, 1963, "Generalized Lagrange Multiplier Method for Solving Problems of Optimum Allocation of
    Resources".
    """
    if scores.expected_cost(0.0) <= limit:
        return 0.0
    gaps = scores.costs - scores.costs.min()
    gap = gaps[gaps > 0].min()
    low, high = 0.0, float(((scores.span + 2) * scores.unit + np.ptp(scores.means)) / gap)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if scores.expected_cost(middle) <= limit:
            high = middle
        else:
            low = middle
    return high
