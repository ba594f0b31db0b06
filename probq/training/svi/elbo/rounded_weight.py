"""Weights are rounded to the nearest levels of grids in few passes, with the straight-through gradients of a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probq.codebooks import Grid
from probq.codebooks.rounding.nearest import BroadcastGrid, nearest_level
from probq.codebooks.rounding.stochastic import inside_levels


def rounded_weight(location: Tensor, scale: Tensor, grid: Grid | BroadcastGrid) -> Tensor:
    """Return `scale * nearest(location / scale)`, ties up.

    Gradients: to the location straight-through within half a step of the levels' range, to the scale as in learned step
    sizes, `sum g (level - u [u inside])` with `u = location / scale`.

    Args:
        location: the real weight, any shape.
        scale: broadcastable to it.
        grid: the levels, one grid for all numbers or one for each.

    Example:
        >>> from probq.codebooks import ternary
        >>> rounded_weight(torch.tensor([0.3, 0.9, -2.0]), torch.tensor(0.5), ternary())
        tensor([ 0.5000,  0.5000, -0.5000])
    """
    value: Tensor = _RoundedWeight.apply(location, scale, grid)
    return value


class _RoundedWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, location: Tensor, scale: Tensor, grid: Grid | BroadcastGrid) -> Tensor:
        u = location / scale
        level = nearest_level(u, grid)
        ctx.save_for_backward(u, scale, level)
        ctx.grid = grid
        return level * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (gradient,), (u, scale, level), grid = grads, ctx.saved_tensors, ctx.grid
        through = inside_levels(gradient, u, grid.start, grid.step, grid.count)
        of_scale = None
        if ctx.needs_input_grad[1]:
            of_scale = torch.addcmul(gradient * level, through, u, value=-1).sum_to_size(scale.shape)
        return through, of_scale, None
