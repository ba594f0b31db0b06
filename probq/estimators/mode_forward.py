"""This estimator takes the mode of the codes forward, and the gradient of the exact mean backward."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from probq.estimators.estimator import Estimator
from probq.network.distributions.codes import Codes


@dataclass(frozen=True)
class ModeForward(Estimator):
    """The value is `w = argmax_l q(l)`, and its gradient is `dL/dw dE_q[l]/dtheta`.

    Training sees the network that ships, and no noise of codes; the KL still holds the posterior open. The data term
    is that of the mode, so the spread it leaves is the prior's choice, not the data's.

    Source: O. Shayer, D. Levy, E. Fetaya, 2018, "Learning Discrete Weights Using the Local Reparameterization Trick"
    (the mode as the network that ships).
    """

    def draw(self, law: Codes) -> Tensor:
        """Return the mode, with the gradient of the mean."""
        mean = law.mean
        return law.mode.detach() + (mean - mean.detach())
