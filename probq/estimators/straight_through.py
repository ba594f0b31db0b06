"""The gradient of drawn codes passes straight through to the location, which explores in a cold fit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from probq.codebooks.rounding.nearest import nearest_level, without_gradient
from probq.codebooks.rounding.stochastic import LevelGradient
from probq.estimators.second_order import SecondOrder
from probq.network.distributions.categorical_codes import CategoricalCodes
from probq.network.distributions.codes import Codes


@dataclass(frozen=True)
class StraightThrough(SecondOrder):
    """The draw is `w = l_j` with `j ~ q`.

    With `u = location / scale` its gradient is `dL/dw du` within half a step of the levels' range.

    Every weight moves, also one far from the midpoint of two levels, where the true gradient all but vanishes: with
    that, codes soon stay where rounding put them. It is no gradient of the bound; where the bound's own optimum counts
    (temperature 1), take `SecondOrder`. Spread, gates and the log-odds of free codes have the gradient of
    `SecondOrder`.

    Source: Y. Bengio, N. Leonard, A. Courville, 2013, "Estimating or Propagating Gradients Through Stochastic Neurons
    for Conditional Computation".
    """

    def draw(self, law: Codes) -> Tensor:
        """Draw levels with the straight-through gradient."""
        if law.fused:
            return law.draw_fused(LevelGradient.STRAIGHT_THROUGH)
        if isinstance(law, CategoricalCodes):
            return super().draw(law)
        through = nearest_level(law.location / law.scale, without_gradient(law.levels), straight_through=True)
        return super().draw(law.still()) + (through - through.detach())
