"""Drawing codes from the two levels nearest to a location, fused into few passes over the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from probq.codebooks import Grid
from probq.rounding import Grids, clip_codes, per_rung

PRODUCT = 64


def two_nearest(location: Tensor, scale: Tensor, spread: Tensor, grid: Grid | Grids) -> tuple[Tensor, Tensor, Tensor]:
    """Draw from the code law over the two nearest levels of a grid.

    With `t = (location / scale - start) / step`, `c` the code below `t` and `a = (t - c - 1/2) / spread`, the draw is
    `c + 1` with probability `sigmoid(a)`, else `c`. One fused pass replaces some twenty element-wise operations.

    Returns:
        The drawn levels, the entropy of all codes together and the log-probability of the draw (scalars, nats).
        Gradients are exact for the last two; the levels carry the gradient of their exact mean.
    """
    return _TwoNearest.apply(location, scale, spread, grid.start, grid.step, grid.count)


class _TwoNearest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, location: Tensor, scale: Tensor, spread: Tensor, start: Any, step: Any, count: Any) -> Any:
        code, a = _log_odds(location, scale, spread, start, step, count)
        p = torch.sigmoid(a)
        up = torch.lt(uniform(p), p, out=torch.empty_like(p))
        level = code.add_(up)
        if not (isinstance(step, int) and step == 1):
            level = level.mul_(step)
        level = level.add_(start)
        flat, total = a.reshape(-1), softplus_sum(a, p)
        ctx.save_for_backward(location, scale, spread, a, p, up)
        ctx.step = step
        ctx.set_materialize_grads(False)
        return level, total - p.reshape(-1).dot(flat), up.reshape(-1).dot(flat) - total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        location, scale, spread, a, p, up = ctx.saved_tensors
        of_level, of_entropy, of_log_prob = grads
        whole = isinstance(ctx.step, int) and ctx.step == 1
        weight = torch.zeros_like(p) if of_level is None else of_level if whole else of_level * ctx.step
        if of_entropy is not None:
            weight = torch.addcmul(weight, a, of_entropy, value=-1)
        of_a = torch.addcmul(p, p, p, value=-1).mul_(weight)
        if of_log_prob is not None:
            of_a = of_a.add_((up - p).mul_(of_log_prob))
        of_location = of_a * (1 / (scale * spread * ctx.step))
        of_scale = -_sum_to(of_location * location, scale) / scale if ctx.needs_input_grad[1] else None
        of_spread = -_sum_to(of_a * a, spread) / spread if ctx.needs_input_grad[2] else None
        return of_location, of_scale, of_spread, None, None, None


def _log_odds(
    location: Tensor, scale: Tensor, spread: Tensor, start: Any, step: Any, count: Any
) -> tuple[Tensor, Tensor]:
    """The code below each location, and the log-odds `a` of the one above it (-80 where there is one level only)."""
    t = location * (1 / (scale * step))
    t -= start / step
    code = torch.floor(t)
    code = code.clamp_(0, max(count - 2, 0)) if isinstance(count, int) else clip_codes(code, (count - 2).clamp_min(0))
    a = t.sub_(code).sub_(0.5).div_(spread)
    if isinstance(count, Tensor):
        return code, a.masked_fill_(count == 1, -80.0)
    return code, a if count > 1 else a.fill_(-80.0)


def uniform(like: Tensor) -> Tensor:
    """Uniform random numbers in (0, 1), odd multiples of 2^-17, shaped like a tensor.

    One 64-bit number makes four of them: torch's own 24-bit ones would take a quarter of a training step's overhead.
    """
    count = like.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    short = bits.view(torch.int16)[:count].reshape(like.shape)
    return short.to(like.dtype).mul_(2.0**-16).add_(0.5 + 2.0**-17)


def softplus_sum(a: Tensor, p: Tensor) -> Tensor:
    """`sum log(1 + e^a)` given `p = sigmoid(a)`, as `sum max(a, 0) - log prod max(p, 1 - p)`: few logarithms."""
    likely = torch.maximum(p, 1 - p).reshape(-1)
    whole = likely.numel() // PRODUCT * PRODUCT
    logs = likely[:whole].reshape(PRODUCT, whole // PRODUCT).prod(0).log().sum() + likely[whole:].log().sum()
    return a.clamp_min(0).sum() - logs


def two_nearest_entropies(location: Tensor, scales: Tensor, spread: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Entropies in nats of the code law over the two nearest levels, on every rung, `[B, *location]`, no gradient.

    Args:
        location: real-valued locations.
        scales: of every rung, `[B, *broadcastable to location]`.
        spread: of the law in steps.
        grids: of every rung.
    """
    start, step, count = per_rung(grids, location)
    _, a = _log_odds(location, scales, spread, start, step, count)
    return (F.softplus(a) - a * torch.sigmoid(a)).expand(len(grids), *location.shape)


def log_difference(upper: Tensor, lower: Tensor, log_cdf: Callable[[Tensor], Tensor] = F.logsigmoid) -> Tensor:
    """`log(F(upper) - F(lower))` of a symmetric law, for `lower <= upper`, exact in both tails; `-inf` where equal.

    Args:
        upper: bounds, possibly infinite.
        lower: bounds, possibly infinite.
        log_cdf: logarithm of the law's distribution function `F`; by default the logistic one.
    """
    flip = (upper + lower) > 0
    high, low = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    log_high, log_low = log_cdf(high), log_cdf(low)
    gap = (log_low - log_high).clamp_max(-1e-12)
    log_difference = log_high + torch.log(-torch.expm1(gap))
    return torch.where(high > low, log_difference, torch.full_like(log_difference, -math.inf))


def negentropies(log_probs: Tensor) -> Tensor:
    """`p log p` in nats of log-probabilities; 0, and of gradient 0, where `p` is 0 or underflows to it."""
    return log_probs.exp() * log_probs.clamp_min(-1000.0)


def _sum_to(value: Tensor, like: Tensor) -> Tensor:
    return value.sum_to_size(like.shape)
