"""Codes are drawn from the two levels nearest to a location, fused into few passes over the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from probq.codebooks import Grid
from probq.codebooks.rounding.nearest import BroadcastGrid, clip_codes, inside_range, per_rung

PRODUCT = 64


class LevelGradient(Enum):
    """This says what the gradient of a drawn level is, with log-odds `a` and location `u` in units of the scale.

    MEAN: that of the exact mean, `p (1 - p) da`. SECOND_ORDER: `1/2 (1 - P(draw)) da`, which has the same mean over
    draws. STRAIGHT_THROUGH: `du` within half a step of the levels' range; for the spread as SECOND_ORDER.
    """

    MEAN = 1
    SECOND_ORDER = 2
    STRAIGHT_THROUGH = 3


def two_nearest(
    location: Tensor,
    scale: Tensor,
    spread: Tensor,
    grid: Grid | BroadcastGrid,
    kind: LevelGradient = LevelGradient.MEAN,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw from the code law over the two nearest levels of a grid.

    With `t = (location / scale - start) / step`, `c` the code below `t` and `a = (t - c - 1/2) / spread`, the draw is
    `c + 1` with probability `sigmoid(a)`, else `c`. One fused pass replaces some twenty element-wise operations.

    Returns:
        The drawn levels, the entropy of all codes together and the log-probability of the draw (scalars, nats).
        Gradients are exact for the last two; that of the levels is of the given kind.
    """
    return _TwoNearest.apply(location, scale, spread, grid.start, grid.step, grid.count, kind)


class _TwoNearest(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        location: Tensor,
        scale: Tensor,
        spread: Tensor,
        start: Any,
        step: Any,
        count: Any,
        kind: LevelGradient,
    ) -> Any:
        code, a = log_odds(location, scale, spread, start, step, count)
        p = torch.sigmoid(a)
        up = torch.lt(uniform(p), p, out=torch.empty_like(p))
        level = code.add_(up)
        if not (isinstance(step, int) and step == 1):
            level = level.mul_(step)
        level = level.add_(start)
        flat, total = a.reshape(-1), softplus_sum(a, p)
        ctx.save_for_backward(location, scale, spread, a, up.bool())  # p is that of a, one pass away
        ctx.start, ctx.step, ctx.count, ctx.kind = start, step, count, kind
        ctx.set_materialize_grads(False)
        return level, total - p.reshape(-1).dot(flat), up.reshape(-1).dot(flat) - total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        location, scale, spread, a, up = ctx.saved_tensors
        p = torch.sigmoid(a)
        up = up.to(p.dtype)
        of_level, of_entropy, of_log_prob = grads
        whole = isinstance(ctx.step, int) and ctx.step == 1
        weight = torch.zeros_like(p) if of_level is None else of_level if whole else of_level * ctx.step
        variance = torch.addcmul(p, p, p, value=-1)
        of_a = weight * (variance if ctx.kind is LevelGradient.MEAN else (up - p).abs_().mul_(0.5))
        through, spreading = ctx.kind is LevelGradient.STRAIGHT_THROUGH, torch.zeros_like(spread)
        if through:
            spreading, of_a = _sum_to(of_a * a, spread), torch.zeros_like(a)
        if of_entropy is not None:
            of_a.addcmul_(variance.mul_(a), of_entropy, value=-1)
        if of_log_prob is not None:
            of_a = of_a.add_((up - p).mul_(of_log_prob))
        of_location = of_a * (1 / (scale * spread * ctx.step))
        if through and of_level is not None:
            of_location += inside_levels(of_level, location / scale, ctx.start, ctx.step, ctx.count) / scale
        of_scale = -_sum_to(of_location * location, scale) / scale if ctx.needs_input_grad[1] else None
        of_spread = -(spreading + _sum_to(of_a * a, spread)) / spread if ctx.needs_input_grad[2] else None
        return of_location, of_scale, of_spread, None, None, None, None


def inside_levels(grad: Tensor, u: Tensor, start: Any, step: Any, count: Any) -> Tensor:
    """Return the gradient where `u` is within half a step of the levels' range, else 0."""
    low, high = start - step / 2, start + (count - 0.5) * step
    return inside_range(grad, u, low, high) if isinstance(count, int) else grad * ((u > low) & (u < high))


def log_odds(
    location: Tensor, scale: Tensor, spread: Tensor, start: Any, step: Any, count: Any
) -> tuple[Tensor, Tensor]:
    """Return the code below each location, and the log-odds `a` of the one above it, -80 where there is one level."""
    t = location * (1 / (scale * step))
    t -= start / step
    code = torch.floor(t)
    code = code.clamp_(0, max(count - 2, 0)) if isinstance(count, int) else clip_codes(code, (count - 2).clamp_min(0))
    a = t.sub_(code).sub_(0.5).div_(spread)
    if isinstance(count, Tensor):
        return code, a.masked_fill_(count == 1, -80.0)
    return code, a if count > 1 else a.fill_(-80.0)


def uniform(like: Tensor) -> Tensor:
    """Return uniform random numbers in (0, 1), odd multiples of 2^-17, shaped like a tensor.

    One 64-bit number makes four of them: torch's own 24-bit ones would take a quarter of a training step's overhead.
    """
    count = like.numel()
    # 16 bits give a level its probability to within 2^-17, little beside the chance of one draw; odd multiples lie
    # symmetrically around 1/2, so that this error favours neither level.
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    short = bits.view(torch.int16)[:count].reshape(like.shape)
    return short.to(like.dtype).mul_(2.0**-16).add_(0.5 + 2.0**-17)


def softplus_sum(a: Tensor, p: Tensor) -> Tensor:
    """Return `sum log(1 + e^a)` given `p = sigmoid(a)`, as `sum max(a, 0) - log prod max(p, 1 - p)`: few logarithms."""
    likely = torch.maximum(p, 1 - p).reshape(-1)
    whole = likely.numel() // PRODUCT * PRODUCT
    logs = likely[:whole].reshape(PRODUCT, whole // PRODUCT).prod(0).log().sum() + likely[whole:].log().sum()
    return a.clamp_min(0).sum() - logs


def two_nearest_entropies(location: Tensor, scales: Tensor, spread: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Return the entropies in nats of the code law over the two nearest levels, on every rung, `[B, *location]`.

    They have no gradient.

    Args:
        location: real-valued locations.
        scales: the scales of every rung, `[B, *broadcastable to location]`.
        spread: the spread of the law in steps.
        grids: the grids of every rung.
    """
    start, step, count = per_rung(grids, location)
    _, a = log_odds(location, scales, spread, start, step, count)
    return (F.softplus(a) - a * torch.sigmoid(a)).expand(len(grids), *location.shape)


def two_nearest_means(location: Tensor, scales: Tensor, spread: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Return the mean value `scale E[level]` of the law over the two nearest levels, on every rung, `[B, *location]`.

    Args: as `two_nearest_entropies`. No gradient.
    """
    start, step, count = per_rung(grids, location)
    code, a = log_odds(location, scales, spread, start, step, count)
    return code.add_(a.sigmoid_()).mul_(step).add_(start).mul_(scales)


def log_difference(upper: Tensor, lower: Tensor, log_cdf: Callable[[Tensor], Tensor] = F.logsigmoid) -> Tensor:
    """Return `log(F(upper) - F(lower))` of a symmetric law, for `lower <= upper`, exact in both tails.

    It is `-inf` where both are equal.

    Args:
        upper: bounds, possibly infinite.
        lower: bounds, possibly infinite.
        log_cdf: logarithm of the law's distribution function `F`; by default the logistic one.
    """
    flip = (upper + lower) > 0
    high, low = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    empty = high <= low  # replaced before the logarithm: its gradient there is no number
    log_high, log_low = log_cdf(high.masked_fill(empty, 0.0)), log_cdf(low.masked_fill(empty, -1.0))
    gap = (log_low - log_high).clamp_max(-1e-12)
    return (log_high + torch.log(-torch.expm1(gap))).masked_fill(empty, -math.inf)


def times_log(log_probs: Tensor) -> Tensor:
    """Return `p log p` in nats, 0 where `p = 0`, and so is its gradient there."""
    probs = log_probs.exp()
    return probs * log_probs.masked_fill(probs == 0, 0.0)


def _sum_to(value: Tensor, like: Tensor) -> Tensor:
    return value.sum_to_size(like.shape)
