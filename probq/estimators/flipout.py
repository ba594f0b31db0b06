"""Flipout: one draw of the weights, with signs of its own for every example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from probq.distributions import Codes
from probq.estimators.estimator import Estimator, Noise, Through, hard_draw, on_weight, remember


@dataclass(frozen=True)
class Flipout(Estimator):
    """`out_n = layer(x_n, E[w]) + r_n * layer(s_n * x_n, w - E[w])`, random signs `r_n`, `s_n` for each example.

    The examples of a batch see almost independent perturbations of the weight, at the price of one more pass of the
    layer. The perturbation's gradient is that of its standard deviation. Signs keep the mean and the variance of every
    weight; where a code's law is not symmetric around its mean, higher moments differ, and the layer sees values
    beside the levels. The site of the code still holds a hard draw.

    Source: Y. Wen, P. Vicol, J. Ba, D. Tran, R. Grosse, 2018, "Flipout: Efficient Pseudo-Independent Weight
    Perturbations on Mini-Batches".
    """

    noisy: ClassVar[bool] = True

    def draw(self, law: Codes) -> Tensor:
        """A draw without gradient; the layer sees its distance from the mean."""
        return remember(hard_draw(law), law)

    def noise(self, law: Codes, levels: Tensor, through: Through) -> Noise:
        """`r * layer(s * x, w - E[w])`."""
        deviation = law.variance.clamp_min(1e-12).sqrt()
        weight = ((levels - law.mean) / deviation).detach() * deviation * law.scale

        def added(module: nn.Module, x: Tensor) -> Tensor:
            out = on_weight(module, weight, x * _signs(x, module))
            return out * _signs(out, module)

        return added


def _signs(like: Tensor, module: nn.Module) -> Tensor:
    """Random signs for every example and channel, the channels on the last axis for linear layers, else on axis 1."""
    if isinstance(module, nn.Linear):
        shape = [like.shape[0], *[1] * (like.dim() - 2), like.shape[-1]]
    else:
        shape = [*like.shape[:2], *[1] * (like.dim() - 2)]
    return torch.randint(0, 2, shape, device=like.device).to(like.dtype) * 2 - 1
