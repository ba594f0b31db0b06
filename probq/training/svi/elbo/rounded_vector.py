"""A vector of several weights is rounded at drawn rungs, with the gradients of a step that learns widths.

It does what `rounded_weight` and `WeightQuantizer.telling` do one by one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probq.codebooks.rounding.stochastic import inside_levels
from probq.training.svi.elbo.drawn_vector import Layout


class Rounded(NamedTuple):
    """Several weights are rounded from these.

    Attributes:
        location: the real weights, `[N]`.
        log2_scales: logarithms of the scales of every rung, `[B, S]`.
        spread: of the codes' law of each weight in steps, `[Q]`; it has no gradient.
        onehots: the drawn rung of each weight, `[Q, B]`.
    """

    location: Tensor
    log2_scales: Tensor
    spread: Tensor
    onehots: Tensor


def rounded_vector(rounded: Rounded, rungs: list[int], layout: Layout) -> Tensor:
    """Return weights `[N]` on the nearest levels of their rungs.

    Gradients: to the location and to the scales of the drawn rungs as those of `rounded_weight`; to the drawn rungs the
    inner products of the incoming gradient with the weight that is drawn, and with the mean weight of every other rung.

    Args:
        rounded: the weights, and the rungs drawn.
        rungs: these as numbers.
        layout: of the vector.
    """
    value: Tensor = _RoundedVector.apply(*rounded, rungs, layout)
    return value


class _RoundedVector(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        location: Tensor,
        log2_scales: Tensor,
        spread: Tensor,
        onehots: Tensor,
        rungs: list[int],
        layout: Layout,
    ) -> Tensor:
        scales, _, code, a = layout.laws(location, log2_scales, spread)
        own, up, scale = (layout.chosen(every, rungs) for every in (code, a, scales))
        level = (own + up.ge(0)).mul_(layout.each(layout.step, rungs)).add_(layout.each(layout.start, rungs))
        means = layout.levels_at(code.add_(a.sigmoid_())).mul_(scales)
        ctx.save_for_backward(location / scale, level, scale, means, onehots)
        ctx.rungs, ctx.layout, ctx.shape = rungs, layout, log2_scales.shape
        return level * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (gradient,), (u, level, scale, means, onehots), layout, rungs = grads, ctx.saved_tensors, ctx.layout, ctx.rungs
        of_level = gradient * level
        through = inside_levels(gradient, u, *layout.grid(rungs))
        of_scale = torch.addcmul(of_level, through, u, value=-1).mul_(scale)
        of_log2 = layout.of_scales(of_scale.mul_(math.log(2)), rungs, ctx.shape)
        taken = layout.sums(of_level * scale).unsqueeze(1)
        of_onehot = torch.where(onehots > 0, taken, layout.sums(means * gradient).T)
        return through, of_log2, None, of_onehot, None, None
