"""Bias correction puts the mean that rounding shifts a layer's output by into its bias."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from probq.codebooks.rounding.nearest import code_levels
from probq.network.program.biases import rounded_bias
from probq.network.program.decided_codes import rung_onehots
from probq.network.quantized.quantized import Quantized
from probq.network.tracing.layer import Layer
from probq.training.ptq.decided import decided_inputs, float_reference
from probq.training.ptq.layer_inputs import float_weight, layer_rows, takes_rows


@torch.no_grad()
def bias(q: Quantized, batches: Iterable[Any], *, examples: int = 512, reference: Quantized | None = None) -> Quantized:
    """Return the decided network with biases that give every layer the float network's mean output on the data:

        b~ = b + mean(W x) - mean(W~ x~),

    with `W`, `b` and `x` of the float network, whatever rounded or corrected it before. Layers are corrected in their
    order, each behind the corrected ones. One without a bias, and without a batch normalisation that could take it,
    stays as it is, as do layers other than linear and convolutions of one or two axes.

    Args:
        q: a decided network, from `Quantized.at`.
        batches: iterable of inputs, or of `(input, target)`, whose targets are not looked at.
        examples: greatest number of examples, kept in memory.
        reference: the network whose float weights are meant; by default those of `q` before any rounding.

    Returns:
        Another decided network of the same widths and codes.

    Raises:
        ProbqError: if the network or the reference is not decided, or there is no data.

    Source: M. Nagel et al., 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction".
    """
    inputs = decided_inputs(q, batches, examples, "bias")
    plain = float_reference(q, reference, "bias")
    result, assignment = copy.deepcopy(q), q.mode()
    for layer in q.layers:
        name = _place(result, layer)
        if name is None or layer.weight not in q.weights or not takes_rows(q, layer):
            continue
        rows = [each.double().mean(1) for each in layer_rows(plain, result, layer, inputs)]  # [groups, n]
        rung = result.rung(layer.weight, rung_onehots(result, assignment.widths)[layer.weight])
        codes = torch.as_tensor(assignment.codes[layer.weight], device=q.device).long()
        decided = (code_levels(rung.levels, codes) * rung.scale).expand(layer.shape)
        wanted = _mean_output(plain, layer, float_weight(plain, layer), rows[0])
        shift = wanted - _mean_output(result, layer, decided, rows[1])
        result.originals.keep(result.net, name)
        tensor = result.net.get_parameter(name)
        tensor.add_(shift.to(tensor.dtype))
    return result


def _mean_output(q: Quantized, layer: Layer, weight: Tensor, rows: Tensor) -> Tensor:
    """Return the mean of each output channel, bias and folded normalisation included."""
    each = weight.double().flatten(1).reshape(len(rows), -1, rows.shape[-1])
    products = (each * rows[:, None]).sum(-1).reshape(-1)
    bias = rounded_bias(q.net, layer, q.folded)
    return products if bias is None else products + bias.double()


def _place(q: Quantized, layer: Layer) -> str | None:
    """Return the name of what takes a shift of the output: the folded normalisation's bias, or the layer's own."""
    owner = layer.name if q.fold(layer.weight) is None or layer.norm is None else layer.norm
    return f"{owner}.bias" if getattr(q.net.get_submodule(owner), "bias", None) is not None else None
