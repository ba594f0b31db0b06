"""What a choice of widths costs, its exact expectation, and limits on it."""

from probq.cost.layer_costs import FLOAT_BITS as FLOAT_BITS
from probq.cost.layer_costs import Cost, Largest, Pruned, activations, bops, ebops, largest_activation, pruned_bops
from probq.cost.layer_costs import Derived as Derived
from probq.cost.layer_costs import combined as combined
from probq.cost.layer_costs import expected as expected
from probq.cost.layer_costs import full as full
from probq.cost.layer_costs import name as name
from probq.cost.layer_costs import pairs as pairs
from probq.cost.layer_costs import part as part
from probq.cost.layer_costs import percent as percent
from probq.cost.layer_costs import storage as storage
from probq.cost.layer_costs import total as total
from probq.cost.measured import table

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
