"""A choice of widths has a cost; this room gives it, its exact expectation, and limits on it."""

from probq.cost.expectation import expected as expected
from probq.cost.largest import Largest, largest_activation
from probq.cost.layer_costs import FLOAT_BITS as FLOAT_BITS
from probq.cost.layer_costs import Cost, activations, bops, ebops, storage
from probq.cost.layer_costs import name as name
from probq.cost.measured import table
from probq.cost.network_cost import as_network_cost as as_network_cost
from probq.cost.pruned import Pruned, pruned_bops
from probq.cost.share import Share
from probq.cost.totals import full as full
from probq.cost.totals import pairs as pairs
from probq.cost.totals import part as part
from probq.cost.totals import percent as percent
from probq.cost.totals import total as total

__all__ = [
    "Cost",
    "Largest",
    "Pruned",
    "Share",
    "activations",
    "bops",
    "ebops",
    "largest_activation",
    "pruned_bops",
    "storage",
    "table",
]
