"""A weight's scale must leave accumulators room: it is at least such that sums stay within 31 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from probq.codebooks import Grid
from probq.codebooks.rounding.nearest import Levels, all_levels
from probq.codebooks.rounding.vectors import Vectors
from probq.network.quantizers.base import InputQuantizer, Rung
from probq.network.tracing.layer import Layer

COMFORT, MOST = 2.0**23, 2.0**25  # of 2^31: multipliers take 4 bits, sums behind the layer the rest
SHARE = 1 / 8  # of the coarsest scale, below which other channels round far less than that channel does
FINEST_BITS = 8  # of levels that are no integers


def leave_headroom(
    rung: Rung, layer: Layer, weight: Callable[[], Tensor], bias: Tensor | None, x: InputQuantizer | None
) -> Rung:
    """Return the rung, its scales widened where they are too fine to leave a layer's sums room.

    Sums of all channels meet in one step, at the latest in the output's. So a channel of zeros or of tiny weights has
    none that is much finer than the others: where the layer's sums would exceed `2^24` steps, no scale is below an
    eighth of the coarsest one, to the next power of two. And a bias beside which weights are tiny stays within `2^26`.

    Args:
        rung: the rung of the layer's weight, normalisation folded in.
        layer: the layer.
        weight: gives what is rounded to the rung's levels.
        bias: the bias of the layer, normalisation folded in.
        x: quantizer of its input; None for an embedding, or a weight that is used without its layer.
    """
    with torch.no_grad():
        own = rung.scale.double()
        unit = _unit(rung.levels) * (1.0 if x is None else x.scales().min().double())
        offset = own.new_zeros(()) if bias is None else bias.double().abs().max()
        share, for_bias = SHARE * own.max(), offset / (unit * MOST)
        if own.min() >= torch.maximum(share, for_bias):
            return rung
        sums = _sums(layer, weight(), x)
        least = torch.minimum(torch.maximum(sums, offset) / (unit * COMFORT), share)
        least = torch.maximum(least, torch.where(offset > sums, for_bias, 0))
        least = torch.exp2(torch.floor(torch.log2(least)))
    return replace(rung, scale=torch.where(own < least, least.to(rung.scale), rung.scale))


def _sums(layer: Layer, weight: Tensor, x: InputQuantizer | None) -> Tensor:
    """Return what a layer's output may reach without its bias."""
    if x is None:
        return weight.abs().max().double()
    most = torch.stack([s * _largest(x.levels(k)) for k, s in enumerate(x.scales())]).max()
    others = [axis for axis in range(weight.dim()) if axis != layer.channel_axis]
    return weight.abs().sum(others, dtype=torch.float64).max() * most.double()


def _largest(levels: Grid | Vectors | Tensor) -> float:
    ends = (levels.start, levels.stop) if isinstance(levels, Grid) else all_levels(levels).detach().tolist()
    return float(max(abs(end) for end in ends))


def _unit(levels: Levels) -> float:
    """Return the greatest power of two, 1 at most, that all levels are multiples of."""
    if not isinstance(levels, Tensor):
        return 1.0
    finer = levels.detach().double() * 2.0 ** torch.arange(FINEST_BITS).double().unsqueeze(1)
    whole = (finer == finer.round()).all(1).tolist()
    return 2.0 ** -(whole.index(True) if True in whole else FINEST_BITS)
