"""A quotient of two tensors is told by both, which are rounded where they enter it, and by the step that it gets."""

from __future__ import annotations

from typing import Any

import numpy as np

from probq.integer.lowering.operations.together import Factors
from probq.integer.lowering.operations.values import Value, refusal
from probq.integer.normalisers.quotient import quotient_ends
from probq.integer.operations import MOST_DIGITS
from probq.network.quantizers.rounding_step import HIGHEST, LOWEST, Step

SIDES = frozenset({"dividend", "divisor"})


def part_of_quotient(name: str, rounded: Value) -> Factors:
    """Return one of the tensors of a quotient, by the name of the module that hands it on."""
    owner, _, side = name.rpartition(".")
    return Factors(owner, {side: rounded})


def quotient(step: Step, name: str, factors: Any, where: str) -> Value:
    """Return the value of a quotient of two tensors, rounded to 18 bits.

        y = clip(floor(2^(e1 - e2 - e) x1 / x2 + 1/2), -2^17, 2^17 - 1) in steps of 2^e

    Args:
        step: what rounds it.
        name: of its stand-in.
        factors: what its forward gives.
        where: operation and module, for messages.

    Raises:
        ProbqError: if its forward does something else, or its steps are too far apart.
    """
    if not isinstance(factors, Factors) or factors.name != name or set(factors.parts) != SIDES:
        raise refusal(where, "it does not divide what it was called with, as a hook may do")
    x, d = factors.parts["dividend"], factors.parts["divisor"]
    exponent = step.exponent(leaving=True)
    digits = int(x.exponent) - int(d.exponent) - exponent
    if abs(digits) > MOST_DIGITS:
        raise refusal(where, "its quotients are far larger or smaller than what it divides; scale that first")
    up, down = max(digits, 0), max(-digits, 0)
    limits = [(int(value.low.min()), int(value.high.max())) for value in (x, d)]
    ends = quotient_ends(limits[0], limits[1], up)
    low, high = (np.array(min(max(end, LOWEST), HIGHEST)) for end in ends)
    shape = np.broadcast_shapes(x.shape, d.shape)
    attributes = {"up": up, "down": down, "lo": LOWEST, "hi": HIGHEST}
    return Value("quotient", (x, d), shape, where, np.array(exponent), 1, low, high, attributes)
