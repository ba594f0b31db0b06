"""Some posteriors are small enough to be checked by enumeration; this module says which, and how a fit treats them."""

from __future__ import annotations

import math

from probq.estimators import SecondOrder
from probq.network.quantized.quantized import Quantized
from probq.rules import ConstraintGuided, Rule
from probq.training.svi.learning_rates import GATES, Rates

SMALL_RATE = 50.0  # learning rate times steps of a posterior small enough to be checked
SMALL_WEIGHTS = 64  # quantized weights, up to which a posterior can be checked
SMALL_DRAWS = 64  # in a step of its fit


def is_small(q: Quantized, temperature: float, rule: Rule) -> bool:
    """Return whether the posterior is small enough to be checked, and can be had by many draws in each step."""
    weights = sum(math.prod(quantizer.shape) for quantizer in q.weights.values())
    usual = all(type(quantizer.estimator) is SecondOrder for _, quantizer in q.named_quantizers())
    return weights <= SMALL_WEIGHTS and temperature == 1 and usual and not isinstance(rule, ConstraintGuided)


def small_rates(steps: int) -> Rates:
    """Return the learning rates that lead a small posterior to where it belongs within a number of steps."""
    least = SMALL_RATE / steps
    return Rates(max(Rates.weights, least), gates=max(GATES * Rates.weights, least))
