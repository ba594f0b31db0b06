"""The expected cost of layers under the posterior over widths is exact, with gradients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probq.cost.layer_costs import Cost
from probq.network.tracing.layer import Layer


@dataclass(frozen=True)
class CostTables:
    """These tables hold the cost of every layer at every pair of its widths, `[weight rungs, input rungs]`.

    Iterating gives pairs of a layer and its table.

    Attributes:
        cost: the cost.
        pairs: the pairs of each layer.
        sites: for each tied quantizer, the one whose width it shares.
        reads: for a cost that knows pruned channels, the weight whose pruned channels each layer need not read; its
            narrowest rung has 0 bits.
    """

    cost: Cost
    pairs: tuple[tuple[Layer, Tensor], ...]
    sites: Mapping[str, str]
    reads: Mapping[str, str]

    def __iter__(self) -> Iterator[tuple[Layer, Tensor]]:
        return iter(self.pairs)

    def site(self, name: str | None) -> str:
        """Return the name whose width a quantizer has, its own or that of the one it is tied to."""
        return self.sites.get(name or "", name or "")


def expected(table: np.ndarray | Tensor, weight_probs: Tensor, input_probs: Tensor) -> Tensor:
    """Return the exact expectation of one layer's cost under independent widths, a scalar with gradients.

        E[cost] = mean over gates g of sum_ij P_g(w = i) P(a = j) cost(i, j)

    Args:
        table: cost of every pair `[weight rungs, input rungs]`.
        weight_probs: `[..., weight rungs]`, a row for each gate.
        input_probs: `[input rungs]`.
    """
    share = weight_probs.reshape(-1, weight_probs.shape[-1]).mean(0).double()
    return share @ torch.as_tensor(table, dtype=torch.float64, device=share.device) @ input_probs.double()


def summed_expectation(tables: CostTables, laws: Mapping[str, Tensor]) -> Tensor:
    """Return the sum over layers of the exact expected cost, a float64 scalar with gradients.

    Layers with equally many rungs are computed together: `sum_l w_l T_l a_l`.

    Args:
        tables: the tables of the cost.
        laws: probability of each rung of every quantizer, `[..., B]`.
    """
    parts, plain = [], defaultdict(list)
    for layer, table in tables:
        weight, x = laws.get(layer.weight), laws.get(layer.input or "")
        tied = tables.site(layer.weight) == tables.site(layer.input)
        if weight is None or x is None or weight.dim() > 1 or tied or layer.name in tables.reads:
            parts.append(layer_expectation(tables, layer, table, laws))
        else:
            plain[table.shape].append((weight, table, x))
    for rows in plain.values():
        weights, costs, inputs = (torch.stack(column).double() for column in zip(*rows, strict=True))
        parts.append((weights.unsqueeze(1) @ costs @ inputs.unsqueeze(2)).sum())
    return torch.stack(parts).sum()


def layer_expectation(tables: CostTables, layer: Layer, table: Tensor, laws: Mapping[str, Tensor]) -> Tensor:
    """Return the exact expected cost of one layer, a float64 scalar.

    Args:
        tables: the tables of the cost.
        layer: the layer.
        table: its own of these.
        laws: probability of each rung of every quantizer, `[..., B]`.
    """
    certain = torch.ones(1, dtype=torch.float64, device=table.device)
    weight, x = (laws.get(name or "", certain) for name in (layer.weight, layer.input))
    if tables.site(layer.weight) == tables.site(layer.input) and layer.weight in laws:
        result = weight.double() @ table.diagonal()  # one width, not two
    else:
        result = expected(table, weight, x)
    if layer.name not in tables.reads:
        return result
    gone = laws[tables.reads[layer.name]][..., 0].double().reshape(-1)
    result = result * (1 - gone).mean()
    if tables.site(layer.weight) != tables.site(tables.reads[layer.name]):
        return result
    # each channel meets itself in one of n products: E[f 1(left)] - E[f] E[left], with f the cost at its width
    law = weight.reshape(-1, weight.shape[-1]).double()
    of_rungs = table @ x.double()
    together = law[:, 1:] @ of_rungs[1:]
    return result + (together - (law @ of_rungs) * (1 - gone)).mean() / len(gone)
