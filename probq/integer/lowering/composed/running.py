"""Sums of all numbers so far along an axis are sums over windows that reach back to the first."""

from __future__ import annotations

import math

import numpy as np

from probq.integer.lowering.operations.data_movement import permute, reshape
from probq.integer.lowering.operations.elementwise import numbers
from probq.integer.lowering.operations.pooling import window_sums
from probq.integer.lowering.operations.values import Value, refusal


def cumsum(value: Value, where: str, shape: tuple[int, ...], axis: int) -> Value:
    """Return `y_t = x_0 + ... + x_t` along one axis other than the batch."""
    inner = axis % (len(shape) + 1) - 1
    if inner < 0:
        raise refusal(where, "it sums over the batch")
    order = [*(k for k in range(len(shape)) if k != inner), inner]
    turned, size = tuple(shape[k] for k in order), shape[inner]
    x = permute(numbers(where, value), where, turned, [0, *(k + 1 for k in order)])
    x = reshape(x, where, (math.prod(turned[:-1]), size))
    spec = {"kernel": [size], "stride": [1], "padding": [[size - 1, 0]]}
    sums = reshape(window_sums(x, x.shape, where, spec), where, turned)
    return permute(sums, where, shape, [0, *(int(k) + 1 for k in np.argsort(order))])
