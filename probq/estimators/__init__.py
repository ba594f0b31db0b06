"""An estimator says how training estimates the gradient of a code posterior; `Plan(estimator=...)` takes one."""

from probq.estimators.estimator import Estimator, Noise, Through, drawn_law
from probq.estimators.flipout import Flipout
from probq.estimators.gumbel import Gumbel
from probq.estimators.local_reparametrization import LocalReparametrization
from probq.estimators.mean_gradient import MeanGradient
from probq.estimators.mode_forward import ModeForward
from probq.estimators.second_order import SecondOrder
from probq.estimators.straight_through import StraightThrough

__all__ = [
    "Estimator",
    "Flipout",
    "Gumbel",
    "LocalReparametrization",
    "MeanGradient",
    "ModeForward",
    "Noise",
    "SecondOrder",
    "StraightThrough",
    "Through",
    "drawn_law",
]
