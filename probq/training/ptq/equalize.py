"""Cross-layer equalization moves a factor of each channel between neighbours, so that both have the same ranges."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from probq.codebooks.rounding.ranges import log2_range
from probq.network.program.folding import as_shipped, per_channel
from probq.network.quantized.quantized import Quantized
from probq.network.tracing.layer import Layer
from probq.training.ptq.decided import decided_inputs, unrounded
from probq.training.ptq.layer_inputs import float_weight
from probq.training.ptq.neighbours import columns, neighbours
from probq.training.ptq.ranges import set_ranges

ROUNDS, ENOUGH = 40, 1e-3  # passes over all pairs; the largest relative change of the last one


@torch.no_grad()
def equalize(q: Quantized, batches: Iterable[Any], *, examples: int = 512) -> Quantized:
    """Return the decided network with weights whose ranges two neighbours share, channel by channel:

        W1_i <- W1_i / s_i,    b1_i <- b1_i / s_i,    W2_i <- W2_i s_i,    s_i = sqrt(r1_i r2_i) / r2_i,

    where `r1_i` is the largest weight of output channel `i` of the first layer, `r2_i` of the second layer's input
    channel `i`, normalisation folded in. The float network computes what it did. Scales of weights and inputs are set
    anew at the same widths, and every code is the nearest one to the float weights, biases those of the float network:
    better rounding and correction come afterwards.

    Neighbours are linear layers and convolutions of one or two axes, depthwise ones too, with nothing but ReLU, leaky
    ReLU, pooling of images, dropout or flattening between them. A layer whose output also goes elsewhere, as beside an
    identity, stays as it is, as do weights that are shared, or have a prior or a free law of their own.

    Args:
        q: a decided network, from `Quantized.at`.
        batches: iterable of inputs, or of `(input, target)`, whose targets are not looked at; they set the scales.
        examples: greatest number of examples, kept in memory.

    Returns:
        Another decided network of the same widths.

    Raises:
        ProbqError: if the network is not decided, or there is no data.

    Source: M. Nagel, M. van Baalen, T. Blankevoort, M. Welling, 2019, "Data-Free Quantization Through Weight
    Equalization and Bias Correction".

    Example:
        >>> import torch, probq
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.Linear(1, 1))
        >>> _ = torch.nn.init.constant_(net[0].weight, 8.0), torch.nn.init.constant_(net[2].weight, 0.5)
        >>> q = probq.quantize(net, torch.rand(4, 1), probq.uniform(4, 4))
        >>> equal = probq.ptq.equalize(q.at(q.mode()), [torch.rand(4, 1)])
        >>> equal.net[0].weight.item(), equal.net[2].weight.item()
        (2.0, 2.0)
    """
    inputs = decided_inputs(q, batches, examples, "equalize")
    result = unrounded(q)
    pairs = [(a, b) for a, b in neighbours(result, inputs[0]) if _plain(result, a) and _plain(result, b)]
    for _ in range(ROUNDS if pairs else 0):
        if max([_move(result, before, after) for before, after in pairs]) < ENOUGH:
            break
    for layer in {layer.name: layer for pair in pairs for layer in pair}.values():
        quantizer = result.weights[layer.weight]
        quantizer.calibrate(as_shipped(result.net, layer, quantizer.multipliers))
    if pairs:
        set_ranges(result, inputs, False, partial(log2_range, method="mse"))
    return result


def _plain(q: Quantized, layer: Layer) -> bool:
    quantizer = q.weights[layer.weight]
    return not quantizer.free_codes and quantizer.code_prior_law is None


def _move(q: Quantized, before: Layer, after: Layer) -> float:
    """Move a factor of each channel from one layer to the next; return the largest relative change."""
    factor = _factor(float_weight(q, before), float_weight(q, after), after)
    norm = None if before.norm is None or not q.folded else q.net.get_submodule(before.norm)
    module: Any = q.net.get_submodule(before.name) if norm is None else norm
    module.weight.div_(per_channel(factor, before) if norm is None else factor)
    if module.bias is not None:
        module.bias.div_(factor)
    columns(q.net.get_parameter(after.weight), after, len(factor)).mul_(factor.reshape(-1, 1))
    return float((factor - 1).abs().max())


def _factor(before: Tensor, after: Tensor, layer: Layer) -> Tensor:
    """Return `s` of each channel, 1 where a range is 0."""
    first = before.flatten(1).abs().amax(1)
    second = columns(after.contiguous(), layer, len(first)).abs().amax((0, 2))
    alive = (first > 0) & (second > 0)
    return torch.where(alive, (first / torch.where(alive, second, 1)).sqrt(), 1.0)
