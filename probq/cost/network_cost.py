"""A cost of layers says by methods what a whole network costs; nothing else tells kinds of costs apart.

A plain function of a layer and two widths is a sum over layers, which is what the base class says. Another kind
overrides what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from probq.cost.expectation import CostTables, summed_expectation
from probq.cost.layer_costs import FLOAT_BITS, Cost
from probq.network.tracing.layer import Layer


class NetworkCost:
    """A network's cost is one of layers that also says how they add up: here to a sum, each layer by its own widths.

    Attributes:
        limits_each_layer: whether a limit on it is the same limit on every layer alone, and on its input's width.
        sees_pruned: whether it knows which channels a layer need not read, so that layers are coupled.
    """

    limits_each_layer: ClassVar[bool] = False
    sees_pruned: ClassVar[bool] = False

    def __call__(self, layer: Layer, weight_bits: Any, input_bits: Any) -> Any:
        """Return what one layer costs, in the widths' shape."""
        raise NotImplementedError

    def aggregate(self, parts: Sequence[Any] | np.ndarray) -> Any:
        """Return the cost of a network from those of its layers, numbers or arrays of one shape."""
        return sum(parts)

    def expectation(self, tables: CostTables, laws: Mapping[str, Tensor]) -> Tensor:
        """Return `E[cost]` of a network exactly, a float64 scalar with gradients.

        Args:
            tables: the tables of this cost.
            laws: probability of each rung of every quantizer, `[..., B]`.
        """
        return summed_expectation(tables, laws)

    def reference(self, layer: Layer) -> float:
        """Return the cost of a layer at 32 bits, to which percentages refer."""
        return self(layer, FLOAT_BITS, FLOAT_BITS)

    def check(self, layer: Layer, weight_bits: Sequence[float], input_bits: Sequence[float]) -> None:
        """Raise unless the cost is known at every pair of these widths."""

    def share_read(self, layer: Layer, layers: Sequence[Layer], widths: Mapping[str, Any]) -> float:
        """Return the share of its cost that a layer has at a choice of all widths.

        It is less than 1 where the layer reads pruned channels.
        """
        return 1.0

    def by_layers(self) -> Cost:
        """Return the cost as a sum over layers that ignores what couples them, never below this one."""
        return self

    def to_entry(self) -> dict[str, Any] | None:
        """Return what a file keeps of it, for `probq.cost.entries`, or None where a file cannot."""
        return None


@dataclass(frozen=True)
class LayerSum(NetworkCost):
    """This cost is a plain function, summed over layers.

    Args:
        of: cost of one layer.
    """

    of: Cost

    def __call__(self, layer: Layer, weight_bits: Any, input_bits: Any) -> Any:
        """Return what one layer costs."""
        return self.of(layer, weight_bits, input_bits)

    def by_layers(self) -> Cost:
        """Return the function itself."""
        return self.of


@dataclass(frozen=True)
class Derived(NetworkCost):
    """This cost of one layer has a name of its own and does more for a network than the sum over layers.

    Args:
        of: cost of one layer, with all its input channels.
        label: its name.
    """

    of: Cost
    label: str

    def __call__(self, layer: Layer, weight_bits: Any, input_bits: Any) -> Any:
        """Return what one layer costs."""
        return self.of(layer, weight_bits, input_bits)

    @property
    def __name__(self) -> str:
        return self.label


def as_network_cost(cost: Cost) -> NetworkCost:
    """Return a cost with its methods; a plain function is summed over layers."""
    return cost if isinstance(cost, NetworkCost) else LayerSum(cost)
