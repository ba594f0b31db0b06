"""Bias correction puts the mean that rounding shifts a layer's output by into its bias."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from probq.codebooks.rounding.nearest import code_levels
from probq.network.program.decided_codes import rung_onehots
from probq.network.quantized.quantized import Quantized
from probq.network.tracing.layer import Layer
from probq.training.ptq.decided import decided_inputs
from probq.training.ptq.layer_inputs import float_weight, layer_rows, takes_rows


@torch.no_grad()
def bias(q: Quantized, batches: Iterable[Any], *, examples: int = 512, reference: Quantized | None = None) -> Quantized:
    """Return the decided network with biases that give every layer the float network's mean output on the data:

        b <- b + mean(W x) - mean(W~ x~).

    Layers are corrected in their order, each behind the corrected ones. One without a bias, and without a batch
    normalisation that could take it, stays as it is, as do layers other than linear and convolutions of one or two
    axes.

    Args:
        q: a decided network, from `Quantized.at`.
        batches: iterable of inputs, or of `(input, target)`, whose targets are not looked at.
        examples: greatest number of examples, kept in memory.
        reference: the network whose float weights are meant, where others have moved those of `q`, as `gpfq` does.

    Returns:
        Another decided network of the same widths and codes.

    Raises:
        ProbqError: if the network is not decided, or there is no data.

    Source: M. Nagel et al., 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction".
    """
    inputs = decided_inputs(q, batches, examples, "bias")
    result, assignment, reference = copy.deepcopy(q), q.mode(), q if reference is None else reference
    for layer in q.layers:
        tensor = _place(result, layer)
        if tensor is None or layer.weight not in q.weights or not takes_rows(q, layer):
            continue
        means = [rows.double().mean(1) for rows in layer_rows(reference, result, layer, inputs)]  # [groups, n]
        rung = result.rung(layer.weight, rung_onehots(result, assignment.widths)[layer.weight])
        codes = torch.as_tensor(assignment.codes[layer.weight], device=q.device).long()
        decided = (code_levels(rung.levels, codes) * rung.scale).expand(layer.shape)
        shift = _mean_output(float_weight(reference, layer), means[0]) - _mean_output(decided, means[1])
        tensor.add_(shift.to(tensor.dtype))
    return result


def _mean_output(weight: Tensor, rows: Tensor) -> Tensor:
    """Return the mean product of each output channel."""
    each = weight.double().flatten(1).reshape(len(rows), -1, rows.shape[-1])
    return (each * rows[:, None]).sum(-1).reshape(-1)


def _place(q: Quantized, layer: Layer) -> Tensor | None:
    """Return what a shift of the layer's output is added to: the folded normalisation's bias, or its own."""
    owner = layer.name if q.fold(layer.weight) is None or layer.norm is None else layer.norm
    found: Tensor | None = getattr(q.net.get_submodule(owner), "bias", None)
    return found
