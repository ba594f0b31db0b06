"""These pictures show a posterior, its costs, a fit and predictions; each function returns matplotlib Axes."""

from probq.plot.channels import channels
from probq.plot.common.save import save, svg
from probq.plot.cost import cost
from probq.plot.coverage import coverage
from probq.plot.depth import depth
from probq.plot.energy import energy
from probq.plot.forest import forest
from probq.plot.history import history
from probq.plot.integers import integers
from probq.plot.pareto import pareto
from probq.plot.reliability import reliability
from probq.plot.weights import weights
from probq.plot.widths import widths

__all__ = [
    "channels",
    "cost",
    "coverage",
    "depth",
    "energy",
    "forest",
    "history",
    "integers",
    "pareto",
    "reliability",
    "save",
    "svg",
    "weights",
    "widths",
]
