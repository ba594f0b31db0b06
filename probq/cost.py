"""What a choice of widths costs. A cost is a function of a layer and its two widths, so its expectation is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from probq.layers import Layer

Cost: TypeAlias = Callable[[Layer, Any, Any], Any]
FLOAT_BITS = 32


def bops(layer: Layer, weight_bits: Any, input_bits: Any) -> Any:
    """Bit operations `MACs * weight bits * input bits` of a layer for one example.

    Args:
        layer: the layer.
        weight_bits: width in bits, a number or an array.
        input_bits: width in bits, a number or an array that broadcasts.

    Returns:
        BOPs, of the widths' shape. Biases, pooling and normalisation are not counted.

    Source: M. van Baalen, C. Louizos, M. Nagel, R. A. Amjad, Y. Wang, T. Blankevoort, M. Welling, 2020, "Bayesian
    Bits: Unifying Quantization and Pruning".
    """
    return layer.macs * weight_bits * input_bits


def storage(layer: Layer, weight_bits: Any, input_bits: Any) -> Any:
    """Bits that store the layer's weight, `weights * weight bits`; a tied weight counts once."""
    return layer.weights * weight_bits + 0 * input_bits


def full(layers: Iterable[Layer], cost: Cost = bops) -> float:
    """Cost of the network with every width at 32 bits: what a percentage refers to."""
    return float(sum(cost(layer, FLOAT_BITS, FLOAT_BITS) for layer in layers))


def pairs(layer: Layer, weight_bits: Iterable[int], input_bits: Iterable[int], cost: Cost = bops) -> np.ndarray:
    """Cost of every pair of widths of a layer, float64 `[weight rungs, input rungs]`."""
    return np.array([[float(cost(layer, w, a)) for a in input_bits] for w in weight_bits])


def total(layers: Iterable[Layer], widths: Mapping[str, Any], cost: Cost = bops) -> float:
    """Cost of one choice of widths. Where the weights of a layer have widths of their own, the mean over weights.

    Args:
        layers: of the network.
        widths: bits of each quantizer, an int or an array; what is not named counts 32 bits.
        cost: the cost.
    """
    result = 0.0
    for layer in layers:
        input_bits = int(widths.get(layer.input or "", FLOAT_BITS))
        bits, counts = np.unique(np.asarray(widths.get(layer.weight, FLOAT_BITS)), return_counts=True)
        result += sum(float(cost(layer, int(b), input_bits)) * int(n) for b, n in zip(bits, counts, strict=True)) / int(
            counts.sum()
        )
    return result


def expected(table: np.ndarray | Tensor, weight_probs: Tensor, input_probs: Tensor) -> Tensor:
    """Exact expectation of one layer's cost under independent widths, a scalar with gradients.

        E[cost] = mean over gates g of sum_ij P_g(w = i) P(a = j) cost(i, j)

    Args:
        table: cost of every pair `[weight rungs, input rungs]`.
        weight_probs: `[..., weight rungs]`, a row for each gate.
        input_probs: `[input rungs]`.
    """
    share = weight_probs.reshape(-1, weight_probs.shape[-1]).mean(0).double()
    return share @ torch.as_tensor(table, dtype=torch.float64, device=share.device) @ input_probs.double()
