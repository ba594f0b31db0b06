"""Ranges of inputs are set anew from data, once widths are decided."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from probq.codebooks.rounding.ranges import METHODS, log2_range
from probq.network.program.program import Program
from probq.network.quantized.quantized import Quantized
from probq.network.quantizers.base import InputQuantizer
from probq.training.ptq.decided import decided_inputs
from probq.training.ptq.layer_inputs import call_order, entering
from probq.utils.errors import ProbqError


def ranges(
    q: Quantized, batches: Iterable[Any], *, method: str = "mse", percentile: float = 99.99, examples: int = 512
) -> Quantized:
    """Return the decided network with scales of inputs, and around non-linear functions, that follow the data.

    Scales of inputs are powers of two. Each is set in the order of the layers, from what arrives behind those that are
    set already, all at their decided widths. Weights keep their scales and codes.

    The method `"minmax"` takes the least scale that clips nothing; `"percentile"` the least that clips nothing up to a
    percentile on either side; `"mse"` that of least squared rounding error, as `quantize` and `fit` set it in the float
    network; and `"kl"` that of least divergence of the rounded histogram, of 2048 bins, from the clipped one.

    Args:
        q: a decided network, from `Quantized.at`.
        batches: iterable of inputs, or of `(input, target)`, whose targets are not looked at.
        method: one of the four.
        percentile: of the method of this name, above 50 and at most 100.
        examples: greatest number of examples, kept in memory.

    Returns:
        Another decided network of the same widths.

    Raises:
        ProbqError: if the network is not decided, there is no data or no such method, or a number is above 1e30.

    Source: S. Migacz, 2017, "8-bit Inference with TensorRT" (divergence of histograms).

    Example:
        >>> import torch, probq
        >>> x = torch.linspace(0, 1, 9).reshape(9, 1)
        >>> q = probq.quantize(torch.nn.Linear(1, 1), x, probq.uniform(4, 4, network_input=probq.codebooks.ladder(2)))
        >>> wide = probq.ptq.ranges(q.at(q.mode()), [4 * x], method="minmax")
        >>> wide.inputs[".input"].scales().item()
        4.0
    """
    inputs = decided_inputs(q, batches, examples, "ranges")
    check_method(method, percentile)
    result = copy.deepcopy(q)
    set_ranges(result, inputs, True, partial(log2_range, method=method, percentile=percentile))
    return result


def check_method(method: str, percentile: float) -> None:
    """Raise unless there is such a method, and such a percentile."""
    if method not in METHODS:
        raise ProbqError(f"ranges(method=...) takes one of {', '.join(map(repr, METHODS))}, not {method!r}")
    if isinstance(percentile, bool) or not isinstance(percentile, int | float) or not 50 < percentile <= 100:
        raise ProbqError(f"ranges(percentile=...) takes a number above 50 and at most 100, not {percentile!r}")


@torch.no_grad()
def set_ranges(q: Program, inputs: list[Any], decided: bool, exponent: Callable[[Tensor, Any], int]) -> None:
    """Set the scales of inputs, and those around non-linear functions, of a network in place.

    Args:
        q: a network.
        inputs: batches of inputs.
        decided: whether the network runs as decided, or in float.
        exponent: from numbers and the levels of their codebook to the exponent of the scale.
    """
    layers = {name.removesuffix(".input"): quantizer for name, quantizer in q.inputs.items()}

    def fit(quantizer: InputQuantizer, sample: Tensor) -> None:
        for k in range(len(quantizer.ladder)):
            quantizer.log2_scale[k] = exponent(sample, quantizer.levels(k))

    for name in call_order(q, [*layers, *q.activations], inputs[0]):
        sample = entering(q, name, inputs, decided)
        if name in layers:
            fit(layers[name], sample)
        else:
            around = q.activations[name]
            fit(around.input, sample)
            fit(around.output, q.net.get_submodule(name).forward(around.before(sample, exact=False)))
