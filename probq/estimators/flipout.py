"""Flipout draws the weights once, with signs of its own for every example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from probq.estimators.estimator import Noise, Through, hard_draw, on_weight, remember
from probq.estimators.second_order import SecondOrderGates
from probq.network.distributions.codes import Codes
from probq.network.matrices.matrix import Matrix

SMALLEST = 1e-6


@dataclass(frozen=True)
class Flipout(SecondOrderGates):
    """The output is `out_n = layer(x_n, E[w]) + r_n * layer(s_n * x_n, w - E[w])`, with random signs `r_n` and `s_n`.

    The examples of a batch see almost independent perturbations of the weight, at the price of one more pass of the
    layer. The perturbation's gradient is that of its standard deviation. Signs keep the mean and the variance of every
    weight; where a code's law is not symmetric around its mean, higher moments differ, and the layer sees values
    beside the levels. The site of the code still holds a hard draw.

    Source: Y. Wen, P. Vicol, J. Ba, D. Tran, R. Grosse, 2018, "Flipout: Efficient Pseudo-Independent Weight
    Perturbations on Mini-Batches".
    """

    noisy: ClassVar[bool] = True

    def draw(self, law: Codes) -> Tensor:
        """Draw without gradient; the layer sees the draw's distance from the mean."""
        return remember(hard_draw(law), law)

    def noise(self, law: Codes, levels: Tensor, through: Through) -> Noise:
        """Return `r * layer(s * x, w - E[w])`."""
        deviation = _deviation(law)
        unit = ((levels - law.mean) / deviation.clamp_min(SMALLEST)).detach()
        # where the drawn rung leaves nothing open, a sign stands for the perturbation that another one would have
        unit = torch.where(deviation > SMALLEST, unit, _signs(unit.shape, unit))
        weight = through(unit * deviation * law.scale, lambda scale, of_rung: unit * scale * _deviation(of_rung))

        def added(module: nn.Module, x: Tensor) -> Tensor:
            out = on_weight(module, weight, x * _signs(_channels(x, module), x))
            return out * _signs(_channels(out, module), out)

        return added


def _deviation(law: Codes) -> Tensor:
    """Return the standard deviation of the levels, without gradient where nothing is open."""
    variance = law.variance
    return torch.where(variance > SMALLEST**2, variance, torch.ones_like(variance)).sqrt() * (variance > SMALLEST**2)


def _channels(x: Tensor, module: nn.Module) -> list[int]:
    """Return the shape of a number for every example and channel: the last axis of a linear layer, else axis 1."""
    if isinstance(module, nn.Linear | Matrix):
        return [x.shape[0], *[1] * (x.dim() - 2), x.shape[-1]]
    return [*x.shape[:2], *[1] * (x.dim() - 2)]


def _signs(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.randint(0, 2, list(shape), device=like.device).to(like.dtype) * 2 - 1
