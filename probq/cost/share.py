"""This cost counts the weights of one width, so that a budget may limit their share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from probq.cost.network_cost import NetworkCost
from probq.network.tracing.layer import Layer
from probq.utils.arguments import is_real
from probq.utils.errors import ProbqError


@dataclass(frozen=True)
class Share(NetworkCost):
    """This cost is the number of weights on the rung of one width; in percent it is their share of all weights.

    On a ladder of mixed families each width stands for one: limits on all but one family leave the rest to that one.
    With `gates="channel"` every row of a weight has a family of its own.

    Args:
        bits: the width.

    Raises:
        ProbqError: if it is no width.

    Source: S. E. Chang et al., 2021, "RMSMP: A Novel Deep Neural Network Quantization Framework with Row-Wise Mixed
    Schemes and Multiple Precisions" (shares of schemes).

    Example: rows of signed powers of two, but for 30 % of the weights at most that are uniform at 4 bits, and 5 % at 8.

        >>> import probq
        >>> ladder = probq.codebooks.ladder(probq.codebooks.powers_of_two(3), 4, 8)
        >>> plan = probq.Plan(ladder, gates="channel")
        >>> limits = [probq.Budget(percent=30, cost=Share(4)), probq.Budget(percent=5, cost=Share(8))]
    """

    bits: float

    def __post_init__(self) -> None:
        if not (is_real(self.bits) and 0 <= self.bits < math.inf):
            raise ProbqError(f"Share takes a width in bits, such as probq.cost.Share(8), not {self.bits!r}")

    @property
    def __name__(self) -> str:
        return f"share_of_{self.bits}_bits"

    def __call__(self, layer: Layer, weight_bits: Any, input_bits: Any) -> Any:
        """Return the layer's weights of this width."""
        return layer.weights * (np.asarray(weight_bits) == self.bits) + 0 * input_bits

    def reference(self, layer: Layer) -> float:
        """Return all weights of the layer, to which percentages refer."""
        return float(layer.weights)

    def to_entry(self) -> dict[str, Any]:
        """Return its name and width."""
        return {"cost": self.__name__, "share": self.bits}
