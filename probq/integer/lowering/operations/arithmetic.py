"""Sums, differences, products with constants and quotients by them become integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from probq.codebooks.rounding.short_numbers import LARGEST_FACTOR, whole_factors
from probq.integer.lowering.operations.elementwise import is_raw, numbers
from probq.integer.lowering.operations.rearranging import spread
from probq.integer.lowering.operations.values import (
    Value,
    common,
    compressed,
    multiplied,
    refusal,
    trailing,
)

Shape: TypeAlias = tuple[int, ...]
Constant: TypeAlias = float | Tensor
FINEST = 24  # binary digits by which a constant may be finer than what it is added to
WIDEST = 2**40  # of sums that are rounded at once, see `bounds.MOST_SUM`


def add(first: Any, where: str, shape: Shape, second: Any, alpha: float = 1) -> Value:
    """Return `first + alpha * second`."""
    if not isinstance(second, Value):
        return _offset(numbers(where, first), where, shape, _array(second) * alpha)
    second = _scaled(numbers(where, second), where, second.shape, _array(alpha))
    if not isinstance(first, Value):
        return _offset(second, where, shape, _array(first))
    a, b = common([numbers(where, first), second])
    return Value(
        "add", (a, b), shape, where, a.exponent, a.divisor, np.asarray(a.low + b.low), np.asarray(a.high + b.high)
    )


def sub(first: Any, where: str, shape: Shape, second: Any, alpha: float = 1) -> Value:
    """Return `first - alpha * second`."""
    return add(first, where, shape, second, -alpha)


def rsub(first: Any, where: str, shape: Shape, second: Any, alpha: float = 1) -> Value:
    """Return `second - alpha * first`."""
    return sub(second, where, shape, first, alpha)


def neg(value: Value, where: str, shape: Shape) -> Value:
    """Return `-value`."""
    return _scaled(numbers(where, value), where, shape, _array(-1))


def mul(first: Any, where: str, shape: Shape, second: Any) -> Value:
    """Return `first * second`, one of them a constant."""
    if isinstance(first, Value) and isinstance(second, Value):
        raise refusal(
            where,
            "both of its tensors are computed, and neither is rounded; give the product a plan, and both tensors the "
            "batch as their first axis, as many axes as each other and real numbers",
        )
    value, constant = (first, second) if isinstance(first, Value) else (second, first)
    return _scaled(value, where, shape, _array(constant))


def div(first: Any, where: str, shape: Shape, second: Any, rounding_mode: str | None = None) -> Value:
    """Return `first / second`, the second a constant."""
    if rounding_mode is not None:
        raise refusal(where, "it rounds by itself; divide without a rounding_mode")
    if isinstance(second, Value):
        raise refusal(
            where,
            "it divides by what is computed; give both tensors the batch as their first axis and as many axes as each "
            "other, as by x.sum(1, keepdim=True) or unsqueeze, and make one of real numbers, as by mask.float()",
        )
    divisors = _array(second)
    if not divisors.all():
        raise refusal(where, "it divides by 0")
    return _scaled(first, where, shape, divisors, divided=True)


def affine(value: Value, where: str, gain: np.ndarray, shift: np.ndarray) -> Value:
    """Return `gain * value + shift`, float64 numbers that broadcast to the value without the batch."""
    return _offset(_scaled(numbers(where, value), where, value.shape, gain), where, value.shape, shift)


def _array(constant: Constant) -> np.ndarray:
    values = constant.detach().double().numpy() if isinstance(constant, Tensor) else np.array(constant, np.float64)
    return compressed(values)


def _fitted(constant: np.ndarray, value: Value, where: str, shape: Shape) -> tuple[np.ndarray, Value]:
    """Return a constant that broadcasts to the value, and the value, repeated where the constant is longer."""
    if not np.isfinite(constant).all():
        raise refusal(where, "its constant is not finite")
    if constant.ndim == len(shape) + 1 and constant.shape[0] == 1:
        constant = constant[0]
    if constant.ndim > len(shape):
        raise refusal(where, f"its constant of shape {constant.shape} changes the shape {value.shape} of what it meets")
    return constant, spread(value, where, shape)


def _scaled(value: Value, where: str, shape: Shape, constant: np.ndarray, divided: bool = False) -> Value:
    """Return the value times constants `p 2^k / q`, or divided by them.

    Integers are multiplied by `p`, and are worth `2^k / q` times as much.
    """
    constant, value = _fitted(constant, value, where, shape)
    if (constant == 1).all():
        return value
    factors, powers, divisor = whole_factors(constant.reshape(-1).tolist(), divided)
    if max(*map(abs, factors), divisor) > LARGEST_FACTOR:
        kind = "divisor" if divided else "factor"
        raise refusal(
            where,
            f"a {kind} of {constant.flat[0]} has too many binary digits; multiply or divide by powers of two or small "
            "whole numbers",
        )
    factor, power = (compressed(np.array(part, np.int64).reshape(constant.shape)) for part in (factors, powers))
    if is_raw(value):
        if divisor > 1 or power.ndim or (factor != 1).any():
            raise refusal(
                where, "of the network's own input only powers of two are known; do it outside of the network"
            )
        return _rescaled(value, int(power))
    value = numbers(where, value)
    ends = value.low * factor, value.high * factor
    low, high = np.asarray(np.minimum(*ends)), np.asarray(np.maximum(*ends))
    tensors = {"multiplier": factor}
    exponent = value.exponent + power
    return Value("scaled", (value,), shape, where, exponent, value.divisor * divisor, low, high, {}, tensors)


def _rescaled(value: Value, power: int) -> Value:
    """Return the network's own input `2^power` times, moved, pooled and clipped as before."""
    if value.op in ("real", "constant"):
        return replace(value, exponent=value.exponent + power)
    low, high = (None if end is None else end * 2.0**power for end in value.limits)
    return replace(value, parents=tuple(_rescaled(parent, power) for parent in value.parents), limits=(low, high))


def _offset(value: Value, where: str, shape: Shape, constant: np.ndarray) -> Value:
    """Return the value plus constants, which must be integers in steps that there is room for."""
    constant, value = _fitted(constant, value, where, shape)
    if not constant.any():
        return value
    fine = _fine(value, constant)
    if fine is None:
        raise refusal(
            where, f"its constant of {constant.flat[0]} has too many binary digits beside what it meets; use fewer, as "
            "0.25 has, or let a layer's bias add it"
        )  # fmt: skip
    add = _steps(constant, fine)
    low, high = np.asarray(fine.low + add), np.asarray(fine.high + add)
    tensors = {"multiplier": np.array(1), "add": add, "shift": np.array(0)}
    limits = {"lo": int(low.min()), "hi": int(high.max())}
    return Value("offset", (fine,), shape, where, fine.exponent, fine.divisor, low, high, limits, tensors)


def _fine(value: Value, constant: np.ndarray) -> Value | None:
    """Return the value in steps of which the constants are multiples; None where there is no room for them."""
    given = [Fraction(c) * value.divisor for c in constant.reshape(-1).tolist() if c]
    if any(c.denominator & (c.denominator - 1) for c in given):
        return None
    exponent = np.minimum(value.exponent, min(map(trailing, given)))
    shift = value.exponent - exponent
    largest = max(map(abs, given)) / Fraction(2) ** int(exponent.min()) + value.bound * 2 ** int(shift.max())
    if int(shift.max()) > FINEST or largest > WIDEST:
        return None
    return multiplied(value, np.left_shift(1, shift), exponent, value.divisor)


def _steps(constant: np.ndarray, value: Value) -> np.ndarray:
    """Return constants in the steps of a value, int64."""
    pairs = np.broadcast_arrays(constant, value.exponent)
    units = [
        int(Fraction(c) * value.divisor / Fraction(2) ** e)
        for c, e in zip(*(part.reshape(-1).tolist() for part in pairs), strict=True)
    ]
    return compressed(np.array(units, np.int64).reshape(pairs[0].shape))


# Those that take constants, which may be tensors of the network.
ARITHMETIC: Mapping[str, Callable[..., Value]] = MappingProxyType(
    {
        "add": add, "add_": add, "sub": sub, "sub_": sub, "subtract": sub, "rsub": rsub,
        "neg": neg, "neg_": neg, "negative": neg,
        "mul": mul, "mul_": mul, "multiply": mul, "div": div, "div_": div, "divide": div, "true_divide": div,
    }
)  # fmt: skip
