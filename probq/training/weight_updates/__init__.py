"""Updates of weights at fixed widths take the place of straight-through tuning, or go before it.

They are scales and levels in closed form, loss-aware Newton steps, and ADMM.
"""

from probq.training.weight_updates.admm import ADMM, admm
from probq.training.weight_updates.closed_forms import weighted_levels, weighted_scale, xnor_scale
from probq.training.weight_updates.loss_aware import LossAware, loss_aware
from probq.training.weight_updates.quantizers import fit_levels, fit_scales

__all__ = [
    "ADMM",
    "LossAware",
    "admm",
    "fit_levels",
    "fit_scales",
    "loss_aware",
    "weighted_levels",
    "weighted_scale",
    "xnor_scale",
]
