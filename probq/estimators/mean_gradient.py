"""This estimator draws a level and gives it the gradient of the exact mean."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from probq.estimators.estimator import Estimator
from probq.network.distributions.codes import Codes


@dataclass(frozen=True)
class MeanGradient(Estimator):
    """The draw is `w = l_j` with `j ~ q`, and its gradient is `dL/dw dE_q[l]/dtheta`.

    It has little variance. It is that of a loss linear in the weight: what the variance of a code costs,
    `1/2 L'' Var_q[l]` and beyond, is not seen; `SecondOrder` adds it. On a rung of one level (pruned) a weight near
    that level keeps its straight-through gradient, although its code is certain.

    Source: Y. Bengio, N. Leonard, A. Courville, 2013, "Estimating or Propagating Gradients Through Stochastic Neurons
    for Conditional Computation" (straight-through; here through the mean of the categorical law).
    """

    def draw(self, law: Codes) -> Tensor:
        """Draw as the law itself does."""
        return law.draw()
