"""A vector of several weights is rounded to the nearest levels, with the straight-through gradients of a step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from probq.codebooks.codebook import half_up
from probq.codebooks.rounding.scales import hardware_scale
from probq.training.svi.elbo.drawn_vector import Layout, inside


def rounded_vector(location: Tensor, log2_scales: Tensor, rungs: list[int], layout: Layout) -> Tensor:
    """Return weights rounded to the nearest level of given rungs, ties up, `[N]`.

    Gradients: to the locations straight-through within half a step of the levels' range, to the scales as in learned
    step sizes.

    Args:
        location: the real weights, `[N]`.
        log2_scales: logarithms of the scales of every rung, `[B, S]`.
        rungs: the rung of each weight.
        layout: of the vector.
    """
    value: Tensor = _RoundedVector.apply(location, log2_scales, rungs, layout)
    return value


class _RoundedVector(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, location: Tensor, log2_scales: Tensor, rungs: list[int], layout: Layout) -> Tensor:
        flat = hardware_scale(log2_scales, layout.multipliers).reshape(-1)
        place = layout.each(torch.arange(len(log2_scales), device=flat.device), rungs) * log2_scales.shape[1]
        scale = flat.index_select(0, place + layout.row)
        u = location / scale
        start, step, count = (layout.each(field, rungs) for field in (layout.start, layout.step, layout.levels))
        code = torch.minimum(half_up((u - start) / step).clamp_min_(0), count - 1)
        level = code.mul_(step).add_(start)
        ctx.save_for_backward(u, scale, level)
        ctx.layout, ctx.rungs, ctx.shape = layout, rungs, log2_scales.shape
        return level * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (gradient,), (u, scale, level) = grads, ctx.saved_tensors
        through = inside(gradient, u, ctx.layout, ctx.rungs)
        of_scale = gradient * level - through * u
        return through, ctx.layout.of_scales(of_scale * scale * math.log(2), ctx.rungs, ctx.shape), None, None
