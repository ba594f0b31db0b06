"""Scales that leave accumulators room: what a weight's scale must be at least, so that sums stay within 31 bits."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from probq.codebooks import Grid
from probq.quantizer import InputQuantizer, Rung
from probq.rounding import Grids
from probq.tracing.layer import Layer

COMFORT, MOST = 2.0**24, 2.0**26  # of 2^31: multipliers take 4 bits, sums behind the layer the rest
SHARE = 1 / 8  # of the coarsest scale, below which other channels round far less than that channel does
FINEST_BITS = 8  # of levels that are no integers


@torch.no_grad()
def least_scale(layer: Layer, rung: Rung, weight: Tensor, bias: Tensor | None, x: InputQuantizer | None) -> Tensor:
    """What all scales of a weight have to be at least, a power of two, scalar.

    Sums of all channels meet in one step, at the latest in the output's. So a channel of zeros or of tiny weights has
    none that is much finer than the others: where the layer's sums would exceed `2^24` steps, scales are at least an
    eighth of the coarsest one. And a bias beside which weights are tiny has to stay within `2^26` steps.

    Args:
        layer: the layer.
        rung: of its weight, normalisation folded in.
        weight: what is rounded to the rung's levels.
        bias: of the layer, normalisation folded in.
        x: quantizer of its input; None for an embedding, or a weight that is used without its layer.
    """
    sizes, finest = weight.double().abs(), weight.new_tensor(_unit(rung.levels))
    if x is None:
        sums = sizes.max()
    else:
        scales = x.scales().double()
        most = torch.stack([s * _largest(x.levels(k)) for k, s in enumerate(scales)]).max()
        others = [axis for axis in range(weight.dim()) if axis != layer.channel_axis]
        sums, finest = sizes.sum(others).max() * most, finest * scales.min()
    offset = torch.zeros_like(sums) if bias is None else bias.double().abs().max()
    least = torch.minimum(torch.maximum(sums, offset) / (finest * COMFORT), SHARE * rung.scale.max().double())
    for_bias = torch.where(offset > sums, offset, 0) / (finest * MOST)
    return torch.exp2(torch.ceil(torch.log2(torch.maximum(least, for_bias))))


def with_room(rung: Rung, least: Tensor) -> Rung:
    """The rung with scales of at least `least`."""
    return replace(rung, scale=torch.where(rung.scale < least, least.to(rung.scale), rung.scale))


def _largest(levels: Grid | Tensor) -> float:
    ends = (levels.start, levels.stop) if isinstance(levels, Grid) else levels.detach().tolist()
    return float(max(abs(end) for end in ends))


def _unit(levels: Grid | Grids | Tensor) -> float:
    """The greatest power of two, 1 at most, that all levels are multiples of."""
    if not isinstance(levels, Tensor):
        return 1.0
    finer = levels.detach().double() * 2.0 ** torch.arange(FINEST_BITS).double().unsqueeze(1)
    whole = (finer == finer.round()).all(1).tolist()
    return 2.0 ** -(whole.index(True) if True in whole else FINEST_BITS)
