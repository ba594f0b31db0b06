"""This module checks the options of `fit` and `steps` before the first step."""

from __future__ import annotations

import math
from typing import Any

import torch

from probq.rules import ConstraintGuided, Rule
from probq.utils.arguments import check_number, check_seed
from probq.utils.errors import ProbqError


def check_options(evaluations: int, trials: int, seed: int | None, search: float | None, temperature: float) -> None:
    """Raise where a number is outside of what it may be."""
    check_number("evaluations", evaluations, 0)
    check_number("trials", trials, 0)
    check_seed(seed)
    if search is not None and not 0 <= search <= 1:
        raise ProbqError(f"search is the share of steps that learn widths, 0 to 1, not {search!r}")
    if not temperature > 0 or not math.isfinite(temperature):
        raise ProbqError(f"temperature must be a positive number, not {temperature!r}")


def check_device(device: torch.device) -> None:
    """Raise where a device lacks what a fit computes with."""
    if device.type == "mps":
        raise ProbqError(
            "a fit computes costs and biases in float64, which Apple's MPS does not have; move the network to the CPU: "
            "q.to('cpu')"
        )


def check_rule(rule: Any, draws: int | None) -> None:
    """Raise unless a rule is one, and works with that many draws in a step."""
    if not isinstance(rule, Rule):
        raise ProbqError(f"rule is one of probq.rules, such as probq.rules.DualAscent(), not {rule!r}")
    if draws is None:
        return
    check_number("draws", draws, 1)
    if draws > 1 and isinstance(rule, ConstraintGuided):
        raise ProbqError("rules.ConstraintGuided moves gates by the gradient of one draw; leave draws out, or use 1")
