"""A network with Brevitas' quantizers at fixed widths, the control of the accuracy benchmarks."""

from __future__ import annotations

import copy
from importlib.metadata import version
from typing import Any

from torch import nn


def quantized(net: nn.Module, weight_bits: int, input_bits: int) -> nn.Module:
    """A copy whose convolutions and linear layers are Brevitas', with the same weights; what comes first reads 8 bits.

    One signed scale for each weight tensor, set where the squared error is least, and one unsigned scale for each
    layer's input, set by a percentile of the first batches; then all of them are learned. Inputs must not be negative.

    Args:
        net: a network whose layers were made in the order in which they run.
        weight_bits: width of all weights.
        input_bits: width of the inputs of all layers but the first.
    """
    copied = copy.deepcopy(net)
    layers = [(name, m) for name, m in copied.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for place, (name, module) in enumerate(layers):
        copied.set_submodule(name, _layer(module, weight_bits, input_bits if place else 8))
    return copied


def _layer(module: nn.Module, weight_bits: int, input_bits: int) -> nn.Module:
    import brevitas.nn as qnn
    from brevitas.quant import Int8WeightPerTensorFloatMSE, Uint8ActPerTensorFloat

    options: dict[str, Any] = {
        "bias": module.bias is not None,
        "weight_quant": Int8WeightPerTensorFloatMSE,
        "weight_scaling_impl_type": "parameter_from_stats",
        "weight_bit_width": weight_bits,
        "input_quant": Uint8ActPerTensorFloat,
        "input_bit_width": input_bits,
    }
    if isinstance(module, nn.Conv2d):
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        own: nn.Module = qnn.QuantConv2d(**{name: getattr(module, name) for name in names}, **options)
    else:
        own = qnn.QuantLinear(module.in_features, module.out_features, **options)
    own.load_state_dict(module.state_dict(), strict=False)
    return own


def versions() -> dict[str, str]:
    """Of Brevitas."""
    return {"brevitas": version("brevitas")}
