"""This cost is that of the largest layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from probq.cost.expectation import CostTables
from probq.cost.layer_costs import activations, name
from probq.cost.network_cost import Derived
from probq.utils.errors import ProbqError


@dataclass(frozen=True)
class Largest(Derived):
    """This cost is `max over layers of cost(layer)` instead of their sum, for a cost of the input alone.

    Args:
        of: cost of one layer; it must not depend on the weight's width.
        label: its name.
    """

    limits_each_layer: ClassVar[bool] = True

    def aggregate(self, parts: Sequence[Any] | np.ndarray) -> Any:
        """Return the largest part; a network without layers costs 0."""
        return np.max(parts, axis=0) if len(parts) else 0.0

    def expectation(self, tables: CostTables, laws: Mapping[str, Tensor]) -> Tensor:
        """Return `E[max] = sum over values v of v (P(max <= v) - P(max < v))`; `P(max <= v)` is a product over widths.

        Raises:
            ProbqError: if the cost depends on the weight's width.
        """
        fixed = 0.0
        values: dict[str, Tensor] = {}
        for layer, table in tables:
            if (table != table[:1]).any():
                raise ProbqError(f"{name(self)} takes the largest of a cost of the input alone; this one is not")
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


largest_activation = Largest(activations, "largest_activation")
