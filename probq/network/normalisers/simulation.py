"""Softmax and normalisation are computed here as the integer model computes them, with the gradient of real numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from probq.integer.normalisers.meaning import largest
from probq.integer.normalisers.tables import (
    ARGUMENT_BITS,
    EXPONENTIAL_BITS,
    FINE_BITS,
    MANTISSA_BITS,
    OUTPUT_BITS,
    PROBABILITY_BITS,
    coarse,
    fine,
    least_square,
    logarithms,
    octaves,
    root_bits,
)


def probabilities(codes: Tensor) -> Tensor:
    """Return the softmax along the last axis of int64 multiples of `2^-10`, a multiple of `2^-15`.

    `probq.integer.normalisers.meaning.softmax` defines it.
    """
    e = _exponentials(codes)
    total = e.sum(-1, keepdim=True)
    return _worth((e * 2 ** (PROBABILITY_BITS + 1) + total) // (2 * total), PROBABILITY_BITS)


def log_probabilities(codes: Tensor) -> Tensor:
    """Return the logarithm of the softmax along the last axis of int64 multiples of `2^-10`, a multiple of `2^-12`.

    `probq.integer.normalisers.meaning.log_softmax` defines it.
    """
    total = _exponentials(codes).sum(-1, keepdim=True)
    highest = torch.frexp(total.double())[1].long() - 1
    mantissa = (total * 2**MANTISSA_BITS >> highest) - 2**MANTISSA_BITS
    log = _looked_up(octaves(codes.shape[-1]), highest) + _looked_up(logarithms(), mantissa)
    return _worth((codes - codes.amax(-1, keepdim=True)) * 2 ** (OUTPUT_BITS - ARGUMENT_BITS) - log, OUTPUT_BITS)


def normalised(codes: Tensor, centred: bool, eps: float, exponent: int) -> Tensor:
    """Return int64 multiples of `2^exponent` normalised along the last axis, multiples of `2^-12`.

    `probq.integer.normalisers.meaning.normalise` defines it.

    Args:
        codes: the multiples.
        centred: whether the mean is subtracted.
        eps: added to the variance of the real numbers.
        exponent: of their step.
    """
    count = codes.shape[-1]
    total = codes.sum(-1, keepdim=True) if centred else torch.zeros_like(codes[..., :1])
    variance = count * codes.square().sum(-1, keepdim=True) - total.square()
    root, limit = root_bits(count), largest(count, OUTPUT_BITS)
    r = _root((variance << 2 * root) + least_square(count, eps, exponent))
    numerator = ((count * codes - total) << OUTPUT_BITS + root + 1) + r
    return _worth(torch.div(numerator, 2 * r, rounding_mode="floor").clamp(-limit, limit), OUTPUT_BITS)


def through(value: Tensor, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a value with the gradient that a function of real numbers has at `x`."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return value.to(x.dtype)
    smooth = function(x)
    return smooth + (value.to(x.dtype) - smooth).detach()


def _root(v: Tensor) -> Tensor:
    r = v.double().sqrt().long()
    r = r - (r * r > v).long()
    return r + ((r + 1) * (r + 1) <= v).long()


def _exponentials(codes: Tensor) -> Tensor:
    below = codes.amax(-1, keepdim=True) - codes
    high = (below >> FINE_BITS).clamp(max=len(coarse()) - 1)
    product = _looked_up(coarse(), high) * _looked_up(fine(), below & 2**FINE_BITS - 1)
    return product + (1 << EXPONENTIAL_BITS - 1) >> EXPONENTIAL_BITS


def _looked_up(table: np.ndarray, index: Tensor) -> Tensor:
    return torch.tensor(table, device=index.device)[index]


def _worth(codes: Tensor, bits: int) -> Tensor:
    return codes.double() * 2.0**-bits
