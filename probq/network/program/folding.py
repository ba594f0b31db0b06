"""Batch normalisation is folded into the layer in front of it, as the integer model ships it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from probq.codebooks.rounding.scales import LEAST_GAIN, hardware_scale
from probq.network.quantizers.base import Rung
from probq.network.tracing.layer import Layer


@dataclass(frozen=True)
class Fold:
    """A fold is the map `norm(layer(x)) = gain * layer(x) + shift` of each output channel; both are `[channels]`."""

    gain: Tensor
    shift: Tensor

    @property
    def alive(self) -> Tensor:
        """Return which channels are not dead, with weights of nearly 0, boolean `[channels]`."""
        return self.gain.detach().abs() >= LEAST_GAIN

    @property
    def size(self) -> Tensor:
        """Return the magnitude of the gain, without gradient, `[channels]`.

        It is 1 for a dead channel, whose scale stays its own.
        """
        return torch.where(self.alive, self.gain.detach().abs(), 1.0)

    @property
    def log2_gain(self) -> Tensor:
        """Return the logarithm (base 2) of the gain's magnitude, without gradient, `[channels]`."""
        return self.size.log2()

    def rest(self, multipliers: int) -> Tensor:
        """Return the part of the gain that the weight takes beyond its scale, no gradient, `[channels]`; see `rung`."""
        if multipliers > 1:
            return torch.ones_like(self.gain.detach())
        return self.alive * self.gain.detach() / hardware_scale(self.log2_gain, multipliers)

    def rung(self, rung: Rung, layer: Layer, multipliers: int) -> Rung:
        """Return a rung of the layer's weight with the normalisation folded in, so that its scale follows the gain.

        Where integers multiply, the scale comes within 3 % of it, and the weight follows the scale: all codes stay
        what they were. In powers of two the scale may be off by a factor of 1.4; there the weight takes the whole gain,
        and codes change.
        """
        gain, log2_gain = per_channel(self.gain, layer), per_channel(self.log2_gain, layer)
        own = rung.scale.detach()
        scale = hardware_scale(own.log2() + log2_gain, multipliers)
        ratio = scale / own
        if multipliers > 1:
            sign = gain.detach().sign() * per_channel(self.alive, layer)  # a dead channel has codes of 0
            change = (gain - gain.detach()) / per_channel(self.size, layer)
            gain = ratio * (sign + change)  # the gradient of the gain, the size of the ratio
        return replace(rung, scale=scale * (rung.scale / own), factor=gain)  # the scale to the last bit


def fold(net: nn.Module, layer: Layer) -> Fold | None:
    """Return the affine map of the batch normalisation behind a layer, from its running statistics; None without one.

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


def as_shipped(net: nn.Module, layer: Layer, multipliers: int) -> Tensor:
    """Return the weight that a layer's scales are set on.

    It has the part of a folded gain that no scale follows. Scales set on the plain weight would clip the folded one.
    """
    folded = fold(net, layer)
    weight = net.get_parameter(layer.weight).detach()
    return weight if folded is None else weight * per_channel(folded.rest(multipliers), layer)


def per_channel(values: Tensor, layer: Layer) -> Tensor:
    """Return `[channels]` in the shape that broadcasts to the layer's weight.

    A transposed convolution with groups holds the channels of all groups on one axis; there they must agree, so such
    layers are not folded (see `foldable`).
    """
    return values.reshape([-1 if axis == layer.channel_axis else 1 for axis in range(len(layer.shape))])


def foldable(net: nn.Module, layer: Layer) -> bool:
    """Return whether the weight has an axis of exactly the normalisation's channels."""
    if layer.norm is None:
        return False
    norm = net.get_submodule(layer.norm)
    return bool(norm.num_features == layer.shape[layer.channel_axis]) and norm.running_mean is not None


def shift_bias(bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Return what stands in for a folded normalisation: it adds the bias that its layer has no place for, if any."""
    if bias is None:
        return lambda x: x
    return lambda x: x + bias.to(x.dtype).reshape([1, -1] + [1] * (x.dim() - 2))
