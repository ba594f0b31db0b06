"""This module finds the batch normalisations that can be folded without changing what the network computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from probq.network.program.folding import fold, foldable, per_channel
from probq.network.program.substitution import substitute
from probq.network.tracing.arguments import own_copy
from probq.network.tracing.layer import Layer
from probq.network.tracing.trace import Tracing
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import arguments, call, tensors_in


def check_norms(net: nn.Module, found: Tracing, example: Any) -> list[Layer]:
    """Return the layers, with only those normalisations that can be folded without changing the network's output."""
    layers = [m if foldable(net, m) else replace(m, norm=None) for m in found.layers]
    if _folds(net, layers, example):
        return layers
    return [m if m.norm is None or _folds(net, [m], example) else replace(m, norm=None) for m in layers]


@torch.no_grad()
def _folds(net: nn.Module, layers: list[Layer], example: Any) -> bool:
    """Return whether folding leaves the output as it is, also for other statistics, since these will change."""
    training = [m for m in net.modules() if m.training]
    net.eval()
    norms: dict[str, Any] = {m.norm: net.get_submodule(m.norm) for m in layers if m.norm is not None}
    kept = {name: (norm.running_mean.clone(), norm.running_var.clone()) for name, norm in norms.items()}
    try:
        for norm in norms.values():
            tilt = torch.linspace(0.5, 1.5, norm.num_features).to(norm.running_var)
            norm.running_mean.add_(tilt * (norm.running_var + norm.eps).sqrt())
            norm.running_var.mul_(tilt)
        reference = call(net, arguments(own_copy(example)))
        result = substitute(net, *_folded(net, layers), *arguments(example))
    finally:
        for name, (mean, variance) in kept.items():
            norms[name].running_mean.copy_(mean)
            norms[name].running_var.copy_(variance)
        for module in training:
            module.training = True
    if not all(a.numel() and a.isfinite().all() for a in tensors_of(reference)):
        raise ProbqError("the network's outputs for the example are empty or not finite; mend the network first")
    pairs = zip(tensors_of(reference), tensors_of(result), strict=True)
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max().clamp_min(1e-6))) for a, b in pairs)


def _folded(net: nn.Module, layers: list[Layer]) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Return what `substitute` takes to fold the normalisations of some layers."""
    tensors: dict[str, Tensor] = {}
    outputs: dict[str, Any] = {}
    for layer in layers:
        folded = fold(net, layer)
        if folded is not None and layer.norm is not None:
            tensors[layer.weight] = net.get_parameter(layer.weight) * per_channel(folded.gain, layer)
            bias = getattr(net.get_submodule(layer.name), "bias", None)
            if bias is not None:
                tensors[f"{layer.name}.bias"] = torch.zeros_like(bias)
            shift = folded.shift if bias is None else folded.shift + bias * folded.gain
            outputs[layer.norm] = lambda x, shift=shift: x + shift.reshape([1, -1] + [1] * (x.dim() - 2))
    return tensors, {}, outputs


def tensors_of(output: Any) -> list[Tensor]:
    """Return all floating-point tensors in a network's output."""
    return [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
