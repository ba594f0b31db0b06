"""An assignment has one decided width for every quantizer and one code for every weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probq import cost as costs
from probq.cost.budget import Budget
from probq.network.tracing.layer import Layer


@dataclass(frozen=True)
class Assignment:
    """An assignment is a decision, the most probable choice within a budget or a draw.

    Attributes:
        widths: bits of every quantizer by name (`conv1.weight`, `conv1.input`; fixed ones included), an int (of
            vectors also a fraction), or an array where channels or weights have their own.
        codes: for every weight, the index of the level that each number takes on its rung, int32.
        layers: the layers of the network.
        log_prob: log-probability of the widths in nats.
        gap: nats by which a more probable choice within the limit could at most exceed this one; 0 is proven best.
        limit: the limit it was decided under, all of them where there were several, or None.
        loss: measured validation loss for one example in nats, where it was decided by that (`probq.decide`).
        budget: the budget it was decided under, a tuple of several, or None; `Quantized.at` hands it on.
    """

    widths: Mapping[str, float | np.ndarray]
    codes: Mapping[str, np.ndarray] = field(repr=False)
    layers: tuple[Layer, ...] = field(repr=False)
    log_prob: float = 0.0
    gap: float = 0.0
    limit: float | tuple[float, ...] | None = None
    loss: float | None = None
    budget: Budget | tuple[Budget, ...] | None = field(default=None, repr=False)

    def cost(self, cost: costs.Cost = costs.bops) -> float:
        """Return the cost of the widths, in the cost's own unit."""
        return costs.total(self.layers, self.widths, cost)

    def percent(self, cost: costs.Cost = costs.bops) -> float:
        """Return the cost in percent of the network with 32-bit weights and inputs.

        Neither side counts what is outside of all layers, such as a GRU's products; `notes` of the network has its
        share of all MACs.
        """
        return float(costs.percent(self.cost(cost), self.layers, cost))

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Assignment):
            return NotImplemented
        return _same(self.widths, other.widths) and _same(self.codes, other.codes)

    __hash__ = None  # type: ignore[assignment]


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
