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
        ctx.save_for_backward(location, scale)  # both are there anyway; what is made of them would be two weights more
        ctx.grid = grid
        return nearest_level(location / scale, grid) * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (gradient,), (location, scale), grid = grads, ctx.saved_tensors, ctx.grid
        u = location / scale
        through = inside_levels(gradient, u, grid.start, grid.step, grid.count)
        of_scale = None
        if ctx.needs_input_grad[1]:
            told = gradient * nearest_level(u, grid)
            of_scale = torch.addcmul(told, through, u, value=-1).sum_to_size(scale.shape)
        return through, of_scale, None
