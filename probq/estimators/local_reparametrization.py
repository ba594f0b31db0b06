"""The local reparametrization trick draws a layer's outputs, not its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from probq.estimators.estimator import Noise, Through, hard_draw, on_weight, remember
from probq.estimators.second_order import SecondOrderGates
from probq.network.distributions.codes import Codes

SMALLEST = 1e-12


@dataclass(frozen=True)
class LocalReparametrization(SecondOrderGates):
    """Outputs are drawn `out ~ Normal(layer(x, E[w]), layer(x^2, Var[w]))` for each example, not `layer(x, w)`.

    Gradients go through mean and variance of the sum, so the price of a code's variance is seen, with noise that is
    independent between examples. The sums of a layer are taken as normal and as independent of each other; the first
    is the central limit's, and wrong where few weights enter a sum. Two passes of each such layer. Gates are treated
    as in `SecondOrder`; on a rung that leaves nothing open (pruned) they are not told the variance of the other
    rungs.

    The site of the code still holds a hard draw.

    Source: O. Shayer, D. Levy, E. Fetaya, 2018, "Learning Discrete Weights Using the Local Reparameterization Trick";
    D. P. Kingma, T. Salimans, M. Welling, 2015, "Variational Dropout and the Local Reparameterization Trick".
    """

    noisy: ClassVar[bool] = True

    def draw(self, law: Codes) -> Tensor:
        """Draw without gradient; the layer does not see the draw."""
        return remember(hard_draw(law), law)

    def noise(self, law: Codes, levels: Tensor, through: Through) -> Noise:
        """Return `sqrt(layer(x^2, Var[w])) * standard normal`."""
        variance = through(law.variance * law.scale.square(), lambda scale, of_rung: scale.square() * of_rung.variance)

        def added(module: nn.Module, x: Tensor) -> Tensor:
            deviation = on_weight(module, variance, x.square()).clamp_min(SMALLEST).sqrt()
            return deviation * torch.randn_like(deviation)

        return added
