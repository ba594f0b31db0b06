"""Greedy path following rounds each weight so that what the ones before it got wrong is made up for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from probq.codebooks.rounding.nearest import BroadcastGrid, Levels, code_indices, nearest_level
from probq.codebooks.rounding.vectors import Vectors
from probq.network.program.decided_codes import rung_onehots
from probq.network.quantized.quantized import Quantized
from probq.training.ptq.decided import check_decided, decided_inputs, float_network, unrounded
from probq.training.ptq.layer_inputs import float_weight, layer_rows, takes_rows

TINY = 1e-12  # squared norm below which an input is none


@torch.no_grad()
def gpfq(q: Quantized, batches: Iterable[Any], *, examples: int = 512) -> Quantized:
    """Return the decided network with weights rounded one after the other, layer by layer:

        q_t = Q(<x~_t, u + w_t x_t> / ||x~_t||^2),    u <- u + w_t x_t - q_t x~_t,

    for each output channel, `x_t` what enters weight `t` in the float network and `x~_t` in the decided one, whose
    earlier layers are rounded already. Where another function rounded or corrected the network before, `w` and `x` are
    still those of the float network: codes are found anew. Layers other than linear and convolutions of one or two
    axes stay as they are.

    Args:
        q: a decided network, from `Quantized.at`.
        batches: iterable of inputs, or of `(input, target)`, whose targets are not looked at.
        examples: greatest number of examples, kept in memory.

    Returns:
        Another decided network of the same widths.

    Raises:
        ProbqError: if the network is not decided, or there is no data.

    Source: J. Zhang, Y. Zhou, R. Saab, 2022, "Post-training Quantization for Neural Networks with Provable Guarantees".
    """
    inputs, seen = decided_inputs(q, batches, examples, "gpfq"), set()
    result, plain_net, meant = q, float_network(q), unrounded(q)
    for layer in q.layers:
        if layer.weight in seen or layer.weight not in q.weights or not takes_rows(q, layer):
            continue
        seen.add(layer.weight)
        plain, quantized = layer_rows(plain_net, result, layer, inputs)
        assignment = result.mode()
        rung = result.rung(layer.weight, rung_onehots(result, assignment.widths)[layer.weight])
        scale = rung.scale.expand(layer.shape)
        weight = float_weight(meant, layer) / scale
        if isinstance(rung.levels, BroadcastGrid | Vectors):
            continue  # weights with codebooks of their own, or whose codes are of several
        rounded = greedy(weight.flatten(1), plain, quantized, rung.levels)
        codes = code_indices(rung.levels, rounded.reshape(layer.shape)).int().cpu().numpy()
        result = result.at(replace(assignment, codes={**assignment.codes, layer.weight: codes}))
    return check_decided(result, "gpfq")


def greedy(weight: Tensor, plain: Tensor, quantized: Tensor, levels: Levels) -> Tensor:
    """Return levels for the rows of a weight, in units of its scale.

    Args:
        weight: `[channels, n]`.
        plain: inputs `[groups, m, n]` that the weight is meant for.
        quantized: inputs that the levels will meet.
        levels: to round to.
    """
    channels, groups = len(weight), len(plain)
    each = weight.reshape(groups, channels // groups, -1).double()
    x, y = plain.double(), quantized.double()
    error = x.new_zeros(groups, channels // groups, x.shape[1])
    rounded = torch.empty_like(each)
    for t in range(each.shape[-1]):
        wanted = error + each[..., t, None] * x[:, None, :, t]
        norm = y[..., t].square().sum(-1)[:, None]
        value = torch.where(norm > TINY, (wanted * y[:, None, :, t]).sum(-1) / norm.clamp_min(TINY), each[..., t])
        rounded[..., t] = nearest_level(value, levels)
        error = wanted - rounded[..., t, None] * y[:, None, :, t]
    return rounded.reshape(channels, -1).to(weight.dtype)
