"""What a choice of widths costs. A cost is a function of a layer and its two widths, so its expectation is exact.

Most costs are sums over layers; `Largest` takes the maximum, and `Pruned` also sees which channels a layer reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from probq.cost.measured import CostTable, table
from probq.network.tracing.layer import Layer

__all__ = [
    "Cost",
    "Largest",
    "Pruned",
    "activations",
    "bops",
    "ebops",
    "largest_activation",
    "pruned_bops",
    "storage",
    "table",
]

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


def activations(layer: Layer, weight_bits: Any, input_bits: Any) -> Any:
    """Bits of the layer's input tensor for one example, `inputs * input bits`.

    A tensor that two layers read counts twice. Inputs that no quantizer reaches count 32 bits for each number.
    """
    return layer.inputs * input_bits + 0 * weight_bits


def ebops(layer: Layer, weight_bits: Any, input_bits: Any) -> Any:
    """Effective bit operations at most, `MACs * weight digits * input bits`, of a layer for one example.

    The digits of a weight are the binary digits of its magnitude: none at 0 bits, 1 at 1 bit, one less than the width
    from 2 bits on, because the sign is none. The figure is what all weights of that width could cost: one whose outer
    digits are zero costs less, for a constant counts only the digits from its first to its last one. What the decided
    codes really cost is `probq.effective_bops(q, assignment)`.

    Source: C. Sun, T. K. Aarrestad, V. Loncar, J. Ngadiuba, M. Spiropulu, 2024, "Gradient-based Automatic Mixed
    Precision Quantization for Neural Networks On-Chip" (EBOPs).
    """
    bits = np.asarray(weight_bits)
    digits = np.where(bits > 1, bits - 1, bits)
    return layer.macs * (digits if digits.ndim else int(digits)) * input_bits


@dataclass(frozen=True)
class Derived:
    """A cost of one layer under a name of its own, of which a network has more to say than the sum over layers.

    Args:
        of: cost of one layer, with all its input channels.
        label: its name.
    """

    of: Cost
    label: str

    def __call__(self, layer: Layer, weight_bits: Any, input_bits: Any) -> Any:
        """What one layer costs."""
        return self.of(layer, weight_bits, input_bits)

    @property
    def __name__(self) -> str:
        return self.label


@dataclass(frozen=True)
class Largest(Derived):
    """`max over layers of cost(layer)` instead of their sum, for a cost of the input alone.

    Args:
        of: cost of one layer; it must not depend on the weight's width.
        label: its name.
    """


@dataclass(frozen=True)
class Pruned(Derived):
    """`cost(layer) * share of the input channels that are left`, summed over layers.

    A channel is gone where its producer's weight has a width of its own for each output channel, and 0 bits there: the
    channel then is a constant, and its products are too. That is known where a layer reads the output of one
    convolution or linear layer through element-wise functions, pooling, normalisation by constants or flattening only
    (`Layer.reads`), and is not a grouped convolution. All else counts as without pruning.

    Args:
        of: cost of a layer, proportional to its products.
        label: its name.

    Source: M. van Baalen et al., 2020, "Bayesian Bits: Unifying Quantization and Pruning".
    """


largest_activation = Largest(activations, "largest_activation")
pruned_bops = Pruned(bops, "pruned_bops")


def name(cost: Cost) -> str:
    """What a cost is called."""
    return str(getattr(cost, "__name__", cost))


def combined(parts: Sequence[Any], cost: Cost) -> Any:
    """Cost of a network from those of its layers: their sum, or their maximum."""
    return max(parts, default=0.0) if isinstance(cost, Largest) else sum(parts)


def full(layers: Iterable[Layer], cost: Cost = bops) -> float:
    """Cost of the network with every width at 32 bits: what a percentage refers to.

    Where a table has no row at 32 bits, the dearest of a layer's rows stands in.
    """
    if isinstance(cost, CostTable):
        return float(sum(cost.reference(layer) for layer in layers))
    return float(combined([cost(layer, FLOAT_BITS, FLOAT_BITS) for layer in layers], cost))


def percent(amount: Any, layers: Iterable[Layer], cost: Cost = bops) -> Any:
    """An amount, or an array of them, in percent of `full`; 0 where the 32-bit network costs nothing.

    Products outside of all layers, such as a GRU's, are in neither; a network's `notes` has their share of all MACs.
    """
    whole = full(layers, cost)
    return 100 * amount / whole if whole else 0.0 * amount


def pairs(layer: Layer, weight_bits: Iterable[int], input_bits: Iterable[int], cost: Cost = bops) -> np.ndarray:
    """Cost of every pair of widths of a layer, float64 `[weight rungs, input rungs]`."""
    weight_bits, input_bits = tuple(weight_bits), tuple(input_bits)
    if isinstance(cost, CostTable):
        cost.check(layer, weight_bits, input_bits)
    return np.array([[float(cost(layer, w, a)) for a in input_bits] for w in weight_bits])


def total(layers: Iterable[Layer], widths: Mapping[str, Any], cost: Cost = bops) -> float:
    """Cost of one choice of widths. Where the weights of a layer have widths of their own, the mean over weights.

    Args:
        layers: of the network.
        widths: bits of each quantizer, an int or an array; what is not named counts 32 bits.
        cost: the cost.
    """
    layers = tuple(layers)
    return float(combined([part(layer, layers, widths, cost) for layer in layers], cost))


def part(layer: Layer, layers: Sequence[Layer], widths: Mapping[str, Any], cost: Cost) -> float:
    """What one layer of a network adds to `total`; it depends on its own widths, and on those of the layer it reads."""
    input_bits = int(widths.get(layer.input or "", FLOAT_BITS))
    bits, counts = np.unique(np.asarray(widths.get(layer.weight, FLOAT_BITS)), return_counts=True)
    every = sum(float(cost(layer, int(b), input_bits)) * int(n) for b, n in zip(bits, counts, strict=True))
    left = _left(layer, layers, widths) if isinstance(cost, Pruned) else 1.0
    return left * every / int(counts.sum())


def _left(layer: Layer, layers: Sequence[Layer], widths: Mapping[str, Any]) -> float:
    """Share of a layer's input channels that are not pruned."""
    producer = next((m for m in layers if m.weight == layer.reads), None)
    bits = np.asarray(widths.get(layer.reads or "", FLOAT_BITS))
    if producer is None or not bits.ndim or bits.size != producer.channels:
        return 1.0
    return float((bits > 0).mean())


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
