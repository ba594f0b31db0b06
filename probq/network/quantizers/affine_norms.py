"""Batch normalisation that folds into no layer is a step of its own: short numbers multiply and are added, then round.

y = step clip(floor((gain x + shift) / step + 1/2), -2^17, 2^17 - 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probq.codebooks.rounding.scales import LEAST_GAIN
from probq.codebooks.rounding.short_numbers import short_addend, short_factor, short_step
from probq.network.quantizers.rounding_step import round_to_step
from probq.network.tracing.layer import Layer
from probq.network.tracing.module_kinds import NORMS

OF_INPUT = "batch_norm()"  # name of the stand-in within the module


@dataclass(frozen=True)
class AffineNorm:
    """An affine norm is a batch normalisation as integers compute it; all numbers are float64.

    Attributes:
        gain: of 12 significant binary digits, `[channels]`.
        shift: multiples of the step, `[channels]`.
        step: of what it returns, a power of two, a scalar; 1 where all is 0.
    """

    gain: Tensor
    shift: Tensor
    step: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return what stands in for the normalisation of `x` `[batch, channels, ...]`."""
        gain, shift = (part.to(x.dtype).reshape([1, -1] + [1] * (x.dim() - 2)) for part in (self.gain, self.shift))
        return round_to_step(x * gain + shift, self.step.to(x.dtype), exact=x.dtype == torch.float64)


def affine_norms(net: nn.Module, layers: Sequence[Layer]) -> dict[str, AffineNorm]:
    """Return each batch normalisation that no layer takes in, by its name, or by that of its stand-in within it.

    It has a stand-in where it takes the network's own input. One that takes the statistics of each batch is left out.
    """
    taken = {layer.norm for layer in layers}
    norms = {name: m for name, m in net.named_modules() if isinstance(m, NORMS) and name not in taken}
    kept = {name: norm for name, norm in norms.items() if norm.running_mean is not None}
    return {f"{name}.{OF_INPUT}" if OF_INPUT in norm._modules else name: _affine(norm) for name, norm in kept.items()}


def _affine(norm: Any) -> AffineNorm:
    size = torch.rsqrt(norm.running_var.double() + norm.eps)
    weight = torch.ones_like(size) if norm.weight is None else norm.weight.double()
    gain = short_factor(torch.where((weight * size).abs() < LEAST_GAIN, 0.0, weight * size))
    mean = torch.zeros_like(size) if norm.bias is None else norm.bias.double()
    step = short_step((mean.abs() + weight.abs()).max())
    return AffineNorm(gain, short_addend(mean - norm.running_mean.double() * gain, step), step)
