"""Constants that a network multiplies with or adds have few binary digits here, so that integers hold them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

FACTOR_BITS = 12  # significant binary digits of what is multiplied with: 0.012 % off at most
ADDEND_BITS = 12  # binary digits of what is added, below the largest
FINEST_ADDEND = 24  # binary digits of a number that is added, below what it is added to
DOUBLE = 53  # significant binary digits of float64
LARGEST_FACTOR = 2**16  # of an exact constant p 2^k / q: whole numbers p and q, odd
Constant: TypeAlias = float | Tensor


def short_factor(factor: Tensor, bits: int = FACTOR_BITS) -> Tensor:
    """Return the nearest number `p 2^e` with an integer `p` of so many bits and sign, gradient passed on unchanged.

    What is not finite stays as it is.

    Source: T. J. Dekker, 1971, "A Floating-Point Technique for Extending the Available Precision".
    """
    exact = factor.detach().double()
    large = exact * (2.0 ** (DOUBLE - bits) + 1)
    return _through(factor, large - (large - exact))


def short_number(number: float, bits: int = FACTOR_BITS) -> float:
    """Return the same of a number: the nearest `p 2^e` with an integer `p` of so many bits and sign.

    Example:
        >>> short_number(0.1) * 2**15
        3277.0
    """
    if not math.isfinite(number):
        return number
    mantissa, exponent = math.frexp(number)
    return math.ldexp(round(mantissa * 2**bits), exponent - bits)


def coarse_number(number: float, largest: float) -> float:
    """Return a number other than 0 as the nearest multiple, but 0, of `2^-24` of what it is added to.

    So small a number, as those that keep divisors from 0, needs no finer steps of what it meets.

    Args:
        number: the number.
        largest: the largest magnitude of what it is added to, above 0.

    Example:
        >>> coarse_number(1e-12, 8.0) == 2.0**-21
        True
    """
    step = math.ldexp(1.0, math.frexp(largest)[1] - 1 - FINEST_ADDEND)
    return math.copysign(max(round(abs(number) / step), 1) * step, number)


def short_step(size: Tensor) -> Tensor:
    """Return `2^-12` of a magnitude, to the nearest power of two, float64 without gradient; 1 where that is 0."""
    step = short_factor(size.detach().double(), 1) * 2.0**-ADDEND_BITS
    return torch.where(step > 0, step, 1.0)


def short_addend(addend: Tensor, step: Tensor) -> Tensor:
    """Return the nearest multiples of a step that is a power of two, gradient passed on unchanged."""
    return _through(addend, torch.round(addend.detach().double() / step) * step)


def whole_factors(values: Sequence[float], divided: bool) -> tuple[list[int], list[int], int]:
    """Return `(p, k, q)` with `value = p 2^k / q` for each value, or for what dividing by it multiplies with.

    Args:
        values: finite numbers, not 0 where they divide.
        divided: whether they divide.

    Example:
        >>> whole_factors([3.0, 0.5], divided=True)
        ([1, 3], [0, 1], 3)
    """
    parts = [_odd(1 / Fraction(c) if divided else Fraction(c)) for c in values]
    divisor = math.lcm(*(q for _, _, q in parts))
    return [p * (divisor // q) for p, _, q in parts], [k for _, k, _ in parts], divisor


def short(constant: Constant) -> Constant:
    """Return what is added: multiples of `2^-12` of the largest, or a number of 12 significant binary digits."""
    if not isinstance(constant, Tensor):
        return short_number(constant)
    return short_addend(constant, short_step(constant.detach().double().abs().amax()))


def short_gain(constant: Constant) -> Constant:
    """Return what is multiplied with, of 12 significant binary digits."""
    return short_factor(constant) if isinstance(constant, Tensor) else short_number(constant)


def needs_step(constant: Any, kind: str, raw: bool) -> bool:
    """Return whether an operation with a constant is rounded, and the constant shortened.

    Args:
        constant: a number or a tensor.
        kind: "add", "sub", "rsub", "mul" or "div".
        raw: whether it meets the network's own input, which nothing has rounded yet.
    """
    if isinstance(constant, Tensor):
        if constant.dtype.is_complex or not constant.isfinite().all() or (kind == "div" and (constant == 0).any()):
            return False
        if constant.requires_grad:
            return True
        values = constant.detach().double().unique().cpu().numpy()
    elif isinstance(constant, bool) or not isinstance(constant, int | float) or not np.isfinite(constant):
        return False
    else:
        values = np.array([float(constant)])
    if kind == "div" and not values.all():
        return False
    if kind in ("mul", "div"):
        factors, _, divisor = whole_factors(values.tolist(), kind == "div")
        if raw:
            return len(values) > 1 or max(*map(abs, factors), divisor) > 1
        return max(*map(abs, factors), divisor) > LARGEST_FACTOR
    exact = torch.from_numpy(values)
    return raw or not torch.equal(torch.as_tensor(short(exact)), exact)


def _odd(fraction: Fraction) -> tuple[int, int, int]:
    """Return `(p, k, q)` of a fraction `p 2^k / q`, with odd `p` and `q`."""
    if not fraction:
        return 0, 0, 1
    p, q = fraction.numerator, fraction.denominator
    twos = [(n & -n).bit_length() - 1 for n in (p, q)]
    return p >> twos[0], twos[0] - twos[1], q >> twos[1]


def _through(given: Tensor, value: Tensor) -> Tensor:
    """Return the value in the given one's type, and the latter's gradient."""
    exact = given.detach()
    value = torch.where(value.isfinite(), value, exact.double()).to(given.dtype)
    return value + torch.where(exact.isfinite(), given - exact, 0.0) if given.requires_grad else value
