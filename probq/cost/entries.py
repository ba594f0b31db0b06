"""Costs are written as JSON here, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probq.cost.largest import largest_activation
from probq.cost.layer_costs import Cost, activations, bops, ebops, name, storage
from probq.cost.measured import CostTable
from probq.cost.network_cost import as_network_cost
from probq.cost.pruned import pruned_bops
from probq.cost.share import Share

NAMED: tuple[Cost, ...] = (bops, pruned_bops, ebops, storage, activations, largest_activation)


def to_entry(cost: Cost) -> dict[str, Any] | None:
    """Return what JSON can hold of a cost, or None for one of the user's own."""
    return {"cost": name(cost)} if cost in NAMED else as_network_cost(cost).to_entry()


def from_entry(entry: Mapping[str, Any]) -> Cost:
    """Return the cost of an entry.

    Raises:
        StopIteration: if there is no such cost.
    """
    if "share" in entry:
        return Share(entry["share"])
    return CostTable.from_entry(entry) if "table" in entry else next(c for c in NAMED if name(c) == entry["cost"])
