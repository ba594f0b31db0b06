"""Rules enforce a budget while widths are learned; one is given to `probq.fit(..., rule=...)`."""

from probq.rules.augmented_lagrangian import AugmentedLagrangian
from probq.rules.constraint_guided import ConstraintGuided
from probq.rules.directions import gradient, gradient_plus_magnitude, gradient_times_magnitude
from probq.rules.dual_ascent import DualAscent
from probq.rules.pid import PID
from probq.rules.rule import Mover, Rule, State

__all__ = [
    "PID",
    "AugmentedLagrangian",
    "ConstraintGuided",
    "DualAscent",
    "Mover",
    "Rule",
    "State",
    "gradient",
    "gradient_plus_magnitude",
    "gradient_times_magnitude",
]
