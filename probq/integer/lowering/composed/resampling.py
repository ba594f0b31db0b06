"""Images get other sizes here: by means of windows that may differ in size, or linearly between numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from probq.integer.lowering.composed.indexing import window_ends, windows
from probq.integer.lowering.operations.arithmetic import div
from probq.integer.lowering.operations.data_movement import upsample
from probq.integer.lowering.operations.elementwise import numbers
from probq.integer.lowering.operations.pooling import avg_pool
from probq.integer.lowering.operations.rearranging import padded_by_itself
from probq.integer.lowering.operations.values import Value, refusal

Shape = tuple[int, ...]


def adaptive_avg_pool(value: Value, where: str, shape: Shape, size: Any) -> Value:
    """Lower adaptive average pooling; windows of unlike sizes are filled up with zeros."""
    inside, outside = value.shape[1:], shape[1:]
    if not any(a % b for a, b in zip(inside, outside, strict=True)):
        return avg_pool(value, where, shape, [a // b for a, b in zip(inside, outside, strict=True)])
    value = numbers(where, value)
    for inner, out in enumerate(outside, 1):
        wide, length = windows(value, where, inner, out, repeated=False)
        kernel = [1] * len(outside)
        kernel[inner - 1] = length
        pooled = (*value.shape[:inner], out, *value.shape[inner + 1 :])
        value = avg_pool(wide, where, pooled, kernel, divisor=1)
    counts = np.ones([1] * len(shape))
    for axis, (a, b) in enumerate(zip(inside, outside, strict=True), 1):
        own = np.array([stop - start for start, stop in window_ends(a, b)])
        counts = counts * own.reshape([-1 if k == axis else 1 for k in range(len(shape))])
    return div(value, where, shape, torch.from_numpy(counts))


def linear(value: Value, where: str, shape: Shape, *given: Any, **named: Any) -> Value:
    """Lower linear interpolation by whole factors: every number is repeated, then averaged with its neighbours.

    A factor of `s` takes the mean of `s` neighbours, and where it is even that of two such means side by side; at the
    ends the last number is repeated.
    """
    value = numbers(where, value)
    inside, outside = value.shape[1:], shape[1:]
    if any(given[1:2]) or named.get("align_corners"):
        raise refusal(
            where, "its corners are aligned, so that each place has weights of its own; use align_corners=False"
        )
    factors = [b // a for a, b in zip(inside, outside, strict=True)]
    scales = [n for each in (*given[2:], *named.values()) if isinstance(each, list | tuple) for n in each]
    if [a * f for a, f in zip(inside, factors, strict=True)] != list(outside) or any(n != int(n) for n in scales if n):
        raise refusal(where, f"sizes {inside} to {outside} are no whole factors; choose a whole scale_factor")
    value = upsample(value, where, (value.shape[0], *outside))
    ends = [end for factor in factors[::-1] for end in (factor // 2, factor // 2)]
    wide = tuple(n + 2 * (f // 2) for n, f in zip(outside, factors, strict=True))
    value = padded_by_itself(value, where, (value.shape[0], *wide), ends, "replicate")
    sizes = [[f, 1 if f % 2 else 2] for f in factors]
    for kernel in zip(*sizes, strict=True):
        if math.prod(kernel) > 1:
            wide = tuple(n - k + 1 for n, k in zip(value.shape[1:], kernel, strict=True))
            value = avg_pool(value, where, (value.shape[0], *wide), list(kernel), 1)
    return value


RESAMPLED: Mapping[str, Callable[..., Value]] = MappingProxyType(
    {
        "adaptive_avg_pool1d": adaptive_avg_pool, "adaptive_avg_pool2d": adaptive_avg_pool,
        "adaptive_avg_pool3d": adaptive_avg_pool,
        "upsample_linear1d": linear, "upsample_bilinear2d": linear, "upsample_trilinear3d": linear,
    }
)  # fmt: skip
