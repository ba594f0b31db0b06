"""A layer's bias is rounded to the step in which its accumulator counts: that of its weight times that of its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from probq.codebooks.codebook import half_up
from probq.codebooks.rounding.nearest import BroadcastGrid, BroadcastTable
from probq.network.matrices.matrix import Matrix
from probq.network.program.folding import fold
from probq.network.quantizers.base import Rung
from probq.network.tracing.layer import Layer


def accumulator_step(net: nn.Module, layer: Layer, weight: Rung, x: Rung) -> Tensor:
    """Return the step of a layer's accumulator, weight scale times input scale, `[channels]` or a scalar."""
    scale = (weight_step(layer, weight) * x.scale.detach()).reshape(-1)
    if scale.numel() == 1:
        return scale.reshape(())
    channels: Any = net.get_submodule(layer.name)
    if isinstance(channels, Matrix):
        return channels.rows(weight_step(layer, weight) * x.scale.detach())
    return scale.repeat(channels.groups) if layer.transposed else scale


def weight_step(layer: Layer, weight: Rung) -> Tensor:
    """Return the step that all weights of an output channel are multiples of, shaped to broadcast to the weight.

    That is their scale, or the finest one where each weight has its own.
    """
    scale = weight.scale.detach()
    others = [axis for axis, n in enumerate(scale.shape) if n > 1 and axis != layer.channel_axis]
    if not others:
        return scale
    if isinstance(weight.levels, BroadcastGrid | BroadcastTable):
        scale = torch.where(weight.levels.count > 1, scale, torch.inf)
    step = scale.amin(others, keepdim=True)
    return torch.where(step.isfinite(), step, weight.scale.detach().amin(others, keepdim=True))


def rounded_bias(net: nn.Module, layer: Layer, folded: bool, step: Tensor | None = None) -> Tensor | None:
    """Return a layer's bias rounded to multiples of its accumulator's step, or None where it has none.

    It is float64 where it is rounded: its multiple may take all of an accumulator's 31 bits. Its gradient passes
    straight through.

    Args:
        net: the network that the layer is in.
        layer: the layer.
        folded: whether batch normalisation is folded in.
        step: of the accumulator; None: the bias stays as it is.
    """
    bias: Tensor | None = getattr(net.get_submodule(layer.name), "bias", None)
    behind = fold(net, layer) if folded else None
    if behind is not None:
        bias = behind.shift if bias is None else bias * behind.gain + behind.shift
    if bias is None or step is None:
        return bias
    if not torch.is_grad_enabled():  # draws can then be run together by torch.func.vmap
        return _on_step(bias, step)
    result: Tensor = _OnStep.apply(bias, step)
    return result


def _on_step(bias: Tensor, step: Tensor) -> Tensor:
    step = step.double()
    return step * half_up(bias.double() / step)


class _OnStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bias: Tensor, step: Tensor) -> Tensor:
        ctx.dtype = bias.dtype
        return _on_step(bias, step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0].to(ctx.dtype), None
