"""A product of two tensors is told by its operands alone, which are rounded where they enter it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from probq.integer.lowering.operations.bounds import MOST
from probq.integer.lowering.operations.together import Factors
from probq.integer.lowering.operations.values import Value, refusal
from probq.network.tracing.layer import Layer
from probq.network.tracing.product_calls import ELEMENTWISE, Product
from probq.utils.errors import ProbqError


def seen_from(layer: Layer, side: str) -> Layer:
    """Return a product as a layer whose input is the operand of a name."""
    return layer if side == "left" else replace(layer, input=layer.weight)


def product(layer: Layer, module: Product, factors: Any, shape: tuple[int, ...], where: str) -> Value:
    """Return the value of a product of two tensors.

        y = x1 x2 in steps of 2^(e1 + e2), or for matrices the sum of such products

    Args:
        layer: the product as a layer.
        module: its stand-in.
        factors: what its forward gives.
        shape: the shape of the output without the batch.
        where: operation and module, for messages.

    Raises:
        ProbqError: if an integer may leave 31 bits.
    """
    if not isinstance(factors, Factors) or factors.name != layer.name or set(factors.parts) != set(module.sides):
        raise refusal(where, "it does not multiply what it was called with, as a hook may do")
    x, y = (factors.parts[side] for side in module.sides)
    length = 1 if module.kind in ELEMENTWISE else x.shape[-1]
    ends = [length * int(a) * int(b) for a in (x.low.min(), x.high.max()) for b in (y.low.min(), y.high.max())]
    if module.shared and module.kind in ELEMENTWISE:
        ends = [max(ends), 0 if int(x.low.min()) <= 0 <= int(x.high.max()) else min(ends)]
    if max(map(abs, ends)) > MOST:
        raise ProbqError(
            f"{layer.name} cannot be lowered: its sums of {length:,} products may reach {max(map(abs, ends)):,}, the "
            f"limit is {MOST:,} (31 bits); use narrower widths for its operands"
        )
    op = "product" if module.kind in ELEMENTWISE else "matmul"
    low, high = np.array(min(ends)), np.array(max(ends))
    exponent = x.exponent + y.exponent
    return Value(op, (x, y), shape, where, exponent, 1, low, high, quantizer=layer.name)
