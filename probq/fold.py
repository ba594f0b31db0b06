"""Batch normalisation folded into the layer in front of it, as the integer model ships it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probq.layers import Layer


@dataclass(frozen=True)
class Fold:
    """`norm(layer(x)) = gain * layer(x) + shift` for each output channel; both `[channels]`."""

    gain: Tensor
    shift: Tensor

    @property
    def power_of_two(self) -> Tensor:
        """Power of two nearest to the gain's magnitude: what the weight's scale is multiplied with, `[channels]`."""
        magnitude = self.gain.detach().abs().clamp_min(2.0**-20)
        return torch.exp2(torch.round(torch.log2(magnitude)))


def fold(net: nn.Module, layer: Layer) -> Fold | None:
    """The affine map of the batch normalisation behind a layer, with its running statistics; None without one.

    gain = gamma / sqrt(variance + epsilon),    shift = beta - mean * gain
    """
    if layer.norm is None:
        return None
    norm: Any = net.get_submodule(layer.norm)
    gain = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight
    shift = -norm.running_mean * gain
    return Fold(gain, shift if norm.bias is None else shift + norm.bias)


def per_channel(values: Tensor, layer: Layer) -> Tensor:
    """`[channels]` in the shape that broadcasts to the layer's weight.

    A transposed convolution with groups holds the channels of all groups on one axis; there they must agree, so such
    layers are not folded (see `foldable`).
    """
    return values.reshape([-1 if axis == layer.channel_axis else 1 for axis in range(len(layer.shape))])


def foldable(net: nn.Module, layer: Layer) -> bool:
    """Whether the weight has an axis of exactly the normalisation's channels."""
    if layer.norm is None:
        return False
    norm = net.get_submodule(layer.norm)
    return bool(norm.num_features == layer.shape[layer.channel_axis]) and norm.running_mean is not None
