"""Constants that a network multiplies with or adds have few binary digits here, so that integers hold them."""

from __future__ import annotations

import torch
from torch import Tensor

FACTOR_BITS = 12  # significant binary digits of what is multiplied with: 0.012 % off at most
ADDEND_BITS = 12  # binary digits of what is added, below the largest
DOUBLE = 53  # significant binary digits of float64


def short_factor(factor: Tensor, bits: int = FACTOR_BITS) -> Tensor:
    """Return the nearest number `p 2^e` with an integer `p` of so many bits and sign, gradient passed on unchanged.

    What is not finite stays as it is.

    Source: T. J. Dekker, 1971, "A Floating-Point Technique for Extending the Available Precision".
    """
    exact = factor.detach().double()
    large = exact * (2.0 ** (DOUBLE - bits) + 1)
    return _through(factor, large - (large - exact))


def short_step(size: Tensor) -> Tensor:
    """Return `2^-12` of a magnitude, to the nearest power of two, float64 without gradient; 1 where that is 0."""
    step = short_factor(size.detach().double(), 1) * 2.0**-ADDEND_BITS
    return torch.where(step > 0, step, 1.0)


def short_addend(addend: Tensor, step: Tensor) -> Tensor:
    """Return the nearest multiples of a step that is a power of two, gradient passed on unchanged."""
    return _through(addend, torch.round(addend.detach().double() / step) * step)


def _through(given: Tensor, value: Tensor) -> Tensor:
    """Return the value in the given one's type, and the latter's gradient."""
    exact = given.detach()
    value = torch.where(value.isfinite(), value, exact.double()).to(given.dtype)
    return value + torch.where(exact.isfinite(), given - exact, 0.0) if given.requires_grad else value
