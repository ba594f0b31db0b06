"""Non-linear functions as tables of integers."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np

from probq.activations import Activation
from probq.lowering.requantize import Target
from probq.lowering.values import Requantizer, Value

# What torch.export calls the functions of `probq.tracing.module_kinds.TABLES`, and the module to use.
MODULES = MappingProxyType(
    {
        "sigmoid": "Sigmoid", "tanh": "Tanh", "gelu": "GELU", "silu": "SiLU", "hardsigmoid": "Hardsigmoid",
        "hardswish": "Hardswish", "softplus": "Softplus", "elu": "ELU", "leaky_relu": "LeakyReLU",
    }
)  # fmt: skip


def table(activation: Activation, module: Any, name: str, x: Value, where: str, requantizer: Requantizer) -> Value:
    """The value behind a function: its argument rounded, then looked up.

    Args:
        activation: the roundings.
        module: the function.
        name: of the module.
        x: value of the argument.
        where: operation and module, for messages.
        requantizer: rounds the argument.
    """
    grid, levels = activation.table(module.forward)
    exponents = [round(float(np.log2(float(q.scales()[0].detach())))) for q in (activation.input, activation.output)]
    x = requantizer(x, Target(exponents[0], grid.start, grid.step, grid.count), f"{name}.input")
    numbers = levels.numpy().astype(np.int64)
    low, high = (np.array(end) for end in (numbers.min(), numbers.max()))
    return Value(
        "table", (x,), x.shape, where, np.array(exponents[1]), 1, low, high,
        {"first": grid.start}, {"table": numbers}, quantizer=name,
    )  # fmt: skip
