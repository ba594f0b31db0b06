"""Exact expectations of costs under the posterior over widths, with gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from probq import cost as costs
from probq.errors import ProbqError
from probq.network.tracing.layer import Layer


@dataclass(frozen=True)
class CostTables:
    """What a cost is for every layer and every pair of its widths, `[weight rungs, input rungs]`.

    Iterating gives pairs of a layer and its table.

    Attributes:
        cost: the cost.
        pairs: of each layer.
        sites: for each tied quantizer, the one whose width it shares.
        reads: for a cost that knows pruned channels, the weight whose pruned channels each layer need not read; its
            narrowest rung has 0 bits.
    """

    cost: costs.Cost
    pairs: tuple[tuple[Layer, Tensor], ...]
    sites: Mapping[str, str]
    reads: Mapping[str, str]

    def __iter__(self) -> Iterator[tuple[Layer, Tensor]]:
        return iter(self.pairs)

    def site(self, name: str | None) -> str:
        """The name whose width a quantizer has: its own, or that of the one it is tied to."""
        return self.sites.get(name or "", name or "")


def layer_expectation(tables: CostTables, layer: Layer, table: Tensor, laws: Mapping[str, Tensor]) -> Tensor:
    """Exact expected cost of one layer, a float64 scalar.

    Args:
        tables: of the cost.
        layer: the layer.
        table: its own of these.
        laws: probability of each rung of every quantizer, `[..., B]`.
    """
    certain = torch.ones(1, dtype=torch.float64, device=table.device)
    weight, x = (laws.get(name or "", certain) for name in (layer.weight, layer.input))
    if tables.site(layer.weight) == tables.site(layer.input) and layer.weight in laws:
        result = weight.double() @ table.diagonal()  # one width, not two
    else:
        result = costs.expected(table, weight, x)
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


def expected_cost(tables: CostTables, laws: Mapping[str, Tensor]) -> Tensor:
    """Exact `E[cost]` of a network, a float64 scalar with gradients.

    Args:
        tables: of the cost.
        laws: probability of each rung of every quantizer, `[..., B]`.
    """
    if isinstance(tables.cost, costs.Largest):
        return _largest(tables, laws)
    return torch.stack([layer_expectation(tables, layer, table, laws) for layer, table in tables]).sum()


def _largest(tables: CostTables, laws: Mapping[str, Tensor]) -> Tensor:
    """`E[max] = sum over values v of v (P(max <= v) - P(max < v))`, with `P(max <= v)` a product over widths."""
    fixed = 0.0
    values: dict[str, Tensor] = {}
    for layer, table in tables:
        if (table != table[:1]).any():
            raise ProbqError(
                f"{costs.name(tables.cost)} takes the largest of a cost of the input alone; this one is not"
            )
        if layer.input is None or layer.input not in laws:
            fixed = max(fixed, float(table[0].max()))
        else:
            site = tables.site(layer.input)
            values[site] = torch.maximum(values[site], table[0]) if site in values else table[0]
    least = torch.tensor([fixed], dtype=torch.float64, device=next(iter(tables))[1].device)
    every = torch.unique(torch.cat([least, *values.values()]))
    every = every[every >= fixed]
    below = torch.ones_like(every)
    for site, of_rungs in values.items():
        below = below * ((of_rungs[None] <= every[:, None]).double() @ laws[site].double())
    return (every * torch.diff(below, prepend=torch.zeros_like(below[:1]))).sum()
