"""Scales follow from how widely numbers are spread, and the step that suits a normal law of that spread."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from probq.codebooks.rounding.gaussian import gaussian_scale
from probq.codebooks.rounding.nearest import LevelsOfOne, all_levels
from probq.codebooks.rounding.scales import check_size
from probq.codebooks.rounding.vectors import Vectors
from probq.network.program.folding import as_shipped
from probq.network.quantized.quantized import Quantized
from probq.network.quantizers.weight import WeightQuantizer
from probq.training.ptq.decided import decided_inputs, unrounded
from probq.training.ptq.ranges import set_ranges


@torch.no_grad()
def deviations(q: Quantized, batches: Iterable[Any], *, examples: int = 512) -> Quantized:
    """Return the decided network with scales from channel statistics:

        scale = c sqrt(mean x^2),    c = argmin E[(X - c nearest(X / c))^2],    X ~ N(0, 1),

    so that the codebook's steps are those that suit a normal law of the numbers' spread. Scales of weights are those
    of each output channel, or of the tensor where the plan has one scale for it; those of inputs, and around non-linear
    functions, are powers of two, set in the order of the layers from what arrives behind those that are set already.
    Zeros, which every scale fits, count in no spread: what a ReLU leaves of a normal law has that law's step.

    Every code is the nearest one to the float weight afterwards, and biases are those of the float network: better
    rounding and correction come afterwards. Spreads are around 0, which integers have as their zero point. Weights that
    are vectors, or that have a prior or a free law of their own, stay as they are.

    Args:
        q: a decided network, from `Quantized.at`.
        batches: iterable of inputs, or of `(input, target)`, whose targets are not looked at.
        examples: greatest number of examples, kept in memory.

    Returns:
        Another decided network of the same widths.

    Raises:
        ProbqError: if the network is not decided, there is no data, or a number is above 1e30.

    Source: C. Hong, H. Kim, S. Baik, J. Oh, K. M. Lee, 2021, "DAQ: Channel-Wise Distribution-Aware Quantization for
    Deep Image Super-Resolution Networks" (which also takes means off, and measures inputs while the network runs).

    Example: binary weights have the scale `sqrt(2 / pi) = 0.80` times the spread, here in steps of 1/16.

        >>> import torch, probq
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 1))
        >>> net[0].weight.data = torch.tensor([[1.0, -1.0]])
        >>> q = probq.quantize(net, torch.rand(4, 2), probq.uniform(1, 4))
        >>> probq.ptq.deviations(q.at(q.mode()), [torch.rand(4, 2)]).weights["0.weight"].scales().item()
        0.8125
    """
    inputs = decided_inputs(q, batches, examples, "deviations")
    result = unrounded(q)
    for layer in {layer.weight: layer for layer in result.layers}.values():
        if layer.weight in result.weights:
            quantizer = result.weights[layer.weight]
            if not quantizer.free_codes and quantizer.code_prior_law is None:
                _set_weight(quantizer, as_shipped(result.net, layer, quantizer.multipliers))
    set_ranges(result, inputs, True, _log2_of_input)
    return result


def _set_weight(quantizer: WeightQuantizer, weight: Tensor) -> None:
    """Set the scales of every rung whose levels are single numbers."""
    check_size(weight)
    shape = quantizer.log2_scale.shape[1:]
    counts = (weight != 0).float().sum_to_size(shape)
    spread = (weight.square().sum_to_size(shape) / counts.clamp_min(1)).sqrt()
    for k in range(len(quantizer.ladder)):
        levels = quantizer.levels(k)
        if not isinstance(levels, Vectors):
            log2_scale = torch.log2(spread.clamp_min(torch.finfo(spread.dtype).tiny)) + log2_step(levels)
            quantizer.log2_scale[k] = torch.where(counts > 0, log2_scale, quantizer.log2_scale[k])


def _log2_of_input(sample: Tensor, levels: LevelsOfOne) -> int:
    check_size(sample)
    rest = sample[sample != 0].double()
    spread = float(rest.square().mean().sqrt()) if len(rest) else 1.0
    return round(math.log2(spread) + log2_step(levels))


def log2_step(levels: Any) -> float:
    """Return the logarithm (base 2) of the scale that suits a standard normal law."""
    return math.log2(gaussian_scale(all_levels(levels).detach().double().cpu().numpy()))
