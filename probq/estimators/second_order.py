"""These draws of codes and widths have a gradient that is right to second order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from probq.codebooks.rounding.stochastic import LevelGradient
from probq.estimators.estimator import Estimator
from probq.network.distributions.codes import Codes
from probq.network.distributions.widths import Widths


@dataclass(frozen=True)
class SecondOrderGates(Estimator):
    """This estimator's gates have the gradient of `SecondOrder`, whatever it does with codes."""

    exact_gates: ClassVar[bool] = True

    def widths(self, logits: Tensor) -> Widths:
        """Return the law of the width, draws of which have the second-order gradient."""
        return SecondOrderWidths(logits)


@dataclass(frozen=True)
class SecondOrder(SecondOrderGates):
    """With `p = q`, the one-hot draw `D`, its gradient `g` and `J(p) = diag(p) - p p'`, the gradient of `log q` is

        dL/dlog q = 2 J((p + D) / 2) g - 1/2 J(p) g.

    On average it is the true gradient for every loss that is quadratic in each weight, because differences of the loss
    are taken by the trapezoidal rule, from both ends. So the variance of a code has its price, which `MeanGradient`
    leaves out. For two levels it is `dL/dw (b - a) dp / (2 P(D))`: the gradient of the exact mean, weighted by how
    improbable the draw was. The gates of widths are treated alike. More variance than `MeanGradient`, at nearly the
    same price.

    Source: L. Liu, C. Dong, X. Liu, B. Yu, J. Gao, 2023, "Bridging Discrete and Backpropagation: Straight-Through and
    Beyond" (ReinMax).
    """

    def draw(self, law: Codes) -> Tensor:
        """Draw levels with the second-order gradient."""
        if law.fused:
            return law.draw_fused(LevelGradient.SECOND_ORDER)
        levels, log_probs = law.window()
        onehot: Tensor = _Draw.apply(log_probs)
        return law.for_weights((onehot * levels).sum(-1))


class SecondOrderWidths(Widths):
    """This is the law of `Widths`; its draws carry the second-order gradient."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> Widths:
        """Return the same law for a larger batch."""
        return SecondOrderWidths(self.logits.expand(*batch_shape, self.logits.shape[-1]))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw one-hot vectors `[*sample_shape, ..., B]`."""
        log_probs = self.log_probs
        onehot: Tensor = _Draw.apply(log_probs.expand(*sample_shape, *log_probs.shape))
        return onehot


class _Draw(torch.autograd.Function):
    """This function draws one-hot vectors from log-probabilities on the last axis."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor) -> Tensor:
        probs = log_probs.exp()
        bounds = probs.cumsum(-1)
        index = (torch.rand_like(probs[..., :1]) * bounds[..., -1:] > bounds).sum(-1, keepdim=True)
        onehot = torch.zeros_like(probs).scatter_(-1, index.clamp_max(probs.shape[-1] - 1), 1.0)
        ctx.save_for_backward(probs, onehot)
        return onehot

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,), (probs, onehot) = grads, ctx.saved_tensors
        return 2 * _times_jacobian((probs + onehot) / 2, grad) - _times_jacobian(probs, grad) / 2


def _times_jacobian(probs: Tensor, grad: Tensor) -> Tensor:
    """Return `(diag(p) - p p') g`, the derivative of a softmax at `p` times `g`."""
    return probs * (grad - (probs * grad).sum(-1, keepdim=True))
