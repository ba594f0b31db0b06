"""A network has a cost at one choice of widths, at 32 bits, in percent, and in expectation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from probq.cost.expectation import CostTables
from probq.cost.layer_costs import FLOAT_BITS, Cost, bops
from probq.cost.network_cost import as_network_cost
from probq.network.tracing.layer import Layer
from probq.utils.numbers import exact_number


def full(layers: Iterable[Layer], cost: Cost = bops) -> float:
    """Return the cost of the network with every width at 32 bits, to which a percentage refers.

    Where a table has no row at 32 bits, the dearest of a layer's rows stands in.
    """
    of_network = as_network_cost(cost)
    return float(of_network.aggregate([of_network.reference(layer) for layer in layers]))


def percent(amount: Any, layers: Iterable[Layer], cost: Cost = bops) -> Any:
    """Return an amount, or an array of them, in percent of `full`; 0 where the 32-bit network costs nothing.

    Products outside of all layers, such as a GRU's, are in neither; a network's `notes` has their share of all MACs.
    """
    whole = full(layers, cost)
    return 100 * amount / whole if whole else 0.0 * amount


def pairs(layer: Layer, weight_bits: Iterable[float], input_bits: Iterable[float], cost: Cost = bops) -> np.ndarray:
    """Return the cost of every pair of widths of a layer, float64 `[weight rungs, input rungs]`."""
    weight_bits, input_bits = tuple(weight_bits), tuple(input_bits)
    as_network_cost(cost).check(layer, weight_bits, input_bits)
    return np.array([[float(cost(layer, w, a)) for a in input_bits] for w in weight_bits])


def total(layers: Iterable[Layer], widths: Mapping[str, Any], cost: Cost = bops) -> float:
    """Return the cost of one choice of widths.

    Where the weights of a layer have widths of their own, it is the mean over weights.

    Args:
        layers: the layers of the network.
        widths: bits of each quantizer, an int or an array; what is not named counts 32 bits.
        cost: the cost.
    """
    layers = tuple(layers)
    return float(as_network_cost(cost).aggregate([part(layer, layers, widths, cost) for layer in layers]))


def part(layer: Layer, layers: Sequence[Layer], widths: Mapping[str, Any], cost: Cost) -> float:
    """Return what one layer of a network adds to `total`.

    It depends on the layer's own widths, and on those of the layer it reads.
    """
    input_bits = int(widths.get(layer.input or "", FLOAT_BITS))
    bits, counts = np.unique(np.asarray(widths.get(layer.weight, FLOAT_BITS)), return_counts=True)
    every = sum(float(cost(layer, exact_number(b), input_bits)) * int(n) for b, n in zip(bits, counts, strict=True))
    return as_network_cost(cost).share_read(layer, layers, widths) * every / int(counts.sum())


def expected_cost(tables: CostTables, laws: Mapping[str, Tensor]) -> Tensor:
    """Return `E[cost]` of a network exactly, a float64 scalar with gradients.

    Args:
        tables: the tables of the cost.
        laws: probability of each rung of every quantizer, `[..., B]`.
    """
    return as_network_cost(tables.cost).expectation(tables, laws)
