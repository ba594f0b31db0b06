"""Non-linear functions become tables of integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from probq.integer.lowering.operations.requantize import RoundingTarget
from probq.integer.lowering.operations.requantizer import Requantizer
from probq.integer.lowering.operations.values import Value
from probq.network.quantizers.activation import Activation
from probq.network.quantizers.base import InputQuantizer
from probq.network.tracing.stand_ins import FUNCTIONS

# What torch.export calls functions of one number that become tables, for messages and where torch does not say so.
TABULATED = frozenset({*FUNCTIONS, "log_sigmoid"})


def argument(activation: Activation, name: str, x: Value, requantizer: Requantizer) -> Value:
    """Return the rounded argument of the function that module `name` is."""
    grid, exponent = _grid(activation), _exponent(activation.input)
    return requantizer(x, RoundingTarget(exponent, grid.start, grid.step, grid.count), f"{name}.input")


def table(activation: Activation, name: str, x: Value, where: str, function: Callable[[Tensor], Tensor]) -> Value:
    """Return the value behind a function, its rounded argument looked up.

    Args:
        activation: the roundings.
        name: the name of the module.
        x: value of the argument, rounded.
        where: operation and module, for messages.
        function: the function of each number alone, as the network calls it.
    """
    grid, levels = activation.table(function)
    numbers = levels.numpy().astype(np.int64)
    low, high = (np.array(end) for end in (numbers.min(), numbers.max()))
    return Value(
        "table", (x,), x.shape, where, np.array(_exponent(activation.output)), 1, low, high,
        {"first": grid.start}, {"table": numbers}, quantizer=name,
    )  # fmt: skip


def _grid(activation: Activation) -> Any:
    return activation.input.levels(0)


def _exponent(quantizer: InputQuantizer) -> int:
    return round(float(np.log2(float(quantizer.scales()[0].detach()))))
