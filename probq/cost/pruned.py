"""This cost knows which channels are pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from probq.cost.layer_costs import FLOAT_BITS, Cost, bops
from probq.cost.network_cost import Derived
from probq.network.tracing.layer import Layer


@dataclass(frozen=True)
class Pruned(Derived):
    """This cost is `cost(layer) * share of the input channels that are left`, summed over layers.

    A channel is gone where its producer's weight has a width of its own for each output channel, and 0 bits there: the
    channel then is a constant, and its products are too. That is known where a layer reads the output of one
    convolution or linear layer through element-wise functions, pooling, normalisation by constants or flattening only
    (`Layer.reads`), and is not a grouped convolution. All else counts as without pruning.

    Args:
        of: cost of a layer, proportional to its products.
        label: its name.

    Source: M. van Baalen et al., 2020, "Bayesian Bits: Unifying Quantization and Pruning".
    """

    sees_pruned: ClassVar[bool] = True

    def share_read(self, layer: Layer, layers: Sequence[Layer], widths: Mapping[str, Any]) -> float:
        """Return the share of a layer's input channels that are not pruned."""
        producer = next((m for m in layers if m.weight == layer.reads), None)
        bits = np.asarray(widths.get(layer.reads or "", FLOAT_BITS))
        if producer is None or not bits.ndim or bits.size != producer.channels:
            return 1.0
        return float((bits > 0).mean())

    def by_layers(self) -> Cost:
        """Return the cost with all channels."""
        return self.of


pruned_bops = Pruned(bops, "pruned_bops")
