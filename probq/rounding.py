"""Rounding to levels with the gradients that training needs; everything above is written with these few functions.

Rounding is half up everywhere, `floor(u + 1/2)`, as in the integers that leave probq.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from probq.codebooks import Grid
from probq.codebooks.codebook import encode, half_up


@dataclass(frozen=True)
class Grids:
    """A grid for each number: fields of `Grid` as tensors that broadcast to the numbers."""

    start: Tensor
    step: Tensor
    count: Tensor


Levels: TypeAlias = Grid | Grids | Tensor
GATE_SAMPLE = 32768
ENTROPY_SAMPLE = 8192
PRODUCT = 64


def largest_count(levels: Levels) -> int:
    """Number of levels `K`, the largest where codebooks differ between weights."""
    if isinstance(levels, Tensor):
        return levels.shape[0]
    return int(levels.count.max()) if isinstance(levels.count, Tensor) else levels.count


def nearest_level(u: Tensor, levels: Levels, straight_through: bool = False) -> Tensor:
    """Nearest level of each `u`, ties up.

    Args:
        u: values in units of the scale.
        levels: a grid (its fields may be tensors) or ascending levels `[K]`.
        straight_through: pass the gradient to `u` unchanged where `u` lies within half a step of the levels'
            range, and drop it outside (Y. Bengio, N. Leonard, A. Courville, 2013, "Estimating or Propagating
            Gradients Through Stochastic Neurons"). Gradients of learned levels are exact.
    """
    if not straight_through:
        return _nearest(u, levels)
    if isinstance(levels, Grid):
        return _NearestThrough.apply(u, levels)
    value = _nearest(u, levels)
    inside = (u.detach() - value.detach()).abs() <= _reach(levels)
    return value + (u - u.detach()) * inside


class _NearestThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, grid: Grid) -> Tensor:
        ctx.save_for_backward(u)
        ctx.grid = grid
        return grid.nearest(u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (u,), grid = ctx.saved_tensors, ctx.grid
        return inside_range(grads[0], u, grid.start - grid.step / 2, grid.stop + grid.step / 2), None


def inside_range(grad: Tensor, u: Tensor, low: float, high: float) -> Tensor:
    """The gradient where `low < u < high`, else 0, in one pass; a product with a mask takes fifty times longer."""
    return torch.ops.aten.hardtanh_backward(grad, u, low, high)


def _nearest(u: Tensor, levels: Levels) -> Tensor:
    if isinstance(levels, Tensor):
        return levels[encode(u, levels)]
    if isinstance(levels.count, int):
        return levels.nearest(u.detach())
    codes = half_up((u.detach() - levels.start) / levels.step)
    return levels.start + levels.step * _clip(codes, levels.count - 1)


def _reach(levels: Levels) -> Tensor | float:
    """Farthest distance of a value inside the range from its nearest level."""
    if isinstance(levels, Tensor):
        return float((levels[1:] - levels[:-1]).detach().max()) / 2 if levels.shape[0] > 1 else 0.0
    return levels.step / 2


def _clip(codes: Tensor, highest: int | Tensor) -> Tensor:
    if isinstance(highest, Tensor):
        return torch.minimum(codes.clamp_min(0), highest)
    return codes.clamp(0, highest)


def first_code(u: Tensor, levels: Levels, nearest: int) -> Tensor:
    """Code of the lowest of the `nearest` neighbouring levels around each `u`, int64."""
    if isinstance(levels, Tensor):
        below = torch.bucketize(u.detach().contiguous(), levels.detach(), right=True) - 1
        centre = encode(u, levels.detach())
        last: int | Tensor = levels.shape[0] - nearest
    else:
        t = (u.detach() - levels.start) / levels.step
        below, centre = torch.floor(t).long(), torch.floor(t + 0.5).long()
        last = levels.count - nearest
    first = below - (nearest // 2 - 1) if nearest % 2 == 0 else centre - (nearest - 1) // 2
    highest = last.clamp_min(0) if isinstance(last, Tensor) else max(last, 0)
    return _clip(first, highest)


def decode(codes: Tensor, levels: Levels) -> tuple[Tensor, int | Tensor]:
    """Level of each code, and the last valid code (broadcastable to the codes)."""
    if isinstance(levels, Tensor):
        return levels[codes], levels.shape[0] - 1
    start, step, last = levels.start, levels.step, levels.count - 1
    if isinstance(last, Tensor) and codes.dim() > last.dim():
        start, step, last = (torch.as_tensor(v).unsqueeze(-1) for v in (start, step, last))
    return (start + step * codes).to(torch.get_default_dtype()), last


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
    code = code.clamp_(0, max(count - 2, 0)) if isinstance(count, int) else _clip(code, (count - 2).clamp_min(0))
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
    """Entropy in nats of the code law over the two nearest levels, on every rung at once, shape `[B]`, no gradient.

    Args:
        location: real-valued locations.
        scales: of every rung, `[B, *broadcastable to location]`.
        spread: of the law in steps.
        grids: of every rung.
    """
    start, step, count = per_rung(grids, location)
    _, a = _log_odds(location, scales, spread, start, step, count)
    return (F.softplus(a) - a * torch.sigmoid(a)).reshape(len(grids), -1).sum(1)


def per_rung(grids: Sequence[Grid], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Start, step and count of every rung, each `[B, 1, ..]`, to broadcast against `[B, *like]`."""
    rows = torch.tensor([[g.start, g.step, g.count] for g in grids], dtype=like.dtype, device=like.device)
    start, step, count = rows.reshape(len(grids), 3, *[1] * like.dim()).unbind(1)
    return start, step, count


def _sum_to(value: Tensor, like: Tensor) -> Tensor:
    return value.sum_to_size(like.shape)


def round_input(x: Tensor, onehot: Tensor, scales: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Round a layer's input to the grid that the one-hot `onehot` `[B]` names: `scale * nearest(x / scale)`.

    Gradients: to `x` clipped straight-through; to the chosen scale as in learned step sizes; to `onehot` the inner
    product of the incoming gradient with what each rung would have given, from a random part of the batch, scaled up.

    Args:
        x: input, any shape.
        onehot: drawn rung, shape `[B]`.
        scales: one positive scale per rung, shape `[B]`.
        grids: one grid per rung.

    Source: S. K. Esser, J. L. McKinstry, D. Bablani, R. Appuswamy, D. S. Modha, 2020, "Learned Step Size
    Quantization" (gradient of the scale).
    """
    return _RoundInput.apply(x, onehot, scales, tuple(grids))


class _RoundInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, onehot: Tensor, scales: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        rung = int(onehot.argmax())
        y = on_grid(x, scales[rung], grids[rung])
        ctx.save_for_backward(x, y, scales)
        ctx.rung, ctx.grids = rung, grids
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,), (x, y, scales) = grads, ctx.saved_tensors
        scale, grid = float(scales[ctx.rung]), ctx.grids[ctx.rung]
        low, high = (grid.start - grid.step / 2) * scale, (grid.stop + grid.step / 2) * scale
        of_x = inside_range(grad, x, low, high)
        of_scales = of_onehot = None
        if ctx.needs_input_grad[2]:
            of_scales = torch.zeros_like(scales)
            of_scales[ctx.rung] = (_dot(grad, y) - _dot(of_x, x)) / scale
        if ctx.needs_input_grad[1]:
            part = random_part(x)
            of_onehot = products(part(grad), part(x), scales, ctx.grids) * (x.numel() / part(x).numel())
        return of_x, of_onehot, of_scales, None


def products(grad: Tensor, x: Tensor, scales: Tensor, grids: Sequence[Grid]) -> Tensor:
    """`<grad, on_grid(x)>` on every rung at once, shape `[B]`.

    Args:
        grad: shaped like `x`.
        x: values.
        scales: of every rung, `[B]` or `[B, *broadcastable to x]`.
        grids: of every rung.
    """
    start, step, count = per_rung(grids, x)
    scales = scales.reshape(start.shape) if scales.dim() == 1 else scales
    codes = (x * (1 / (scales * step))).add_(0.5 - start / step).floor_().clamp_min_(0)
    values = torch.minimum(codes, count - 1, out=codes).mul_(step).add_(start).mul_(scales)
    return values.reshape(len(grids), -1) @ grad.reshape(-1)


def on_grid(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """`scale * nearest(x / scale)` without a gradient, in as few passes as torch allows."""
    codes = (x * (1 / (scale * grid.step))).add_(0.5 - grid.start / grid.step).floor_().clamp_(0, grid.count - 1)
    if grid.start == 0:
        return codes.mul_(scale * grid.step)
    return codes.mul_(grid.step).add_(grid.start).mul_(scale)


def random_part(x: Tensor, size: int = GATE_SAMPLE) -> Any:
    """A function that takes the same random slice of the first axis, some `size` numbers, from tensors like `x`.

    The slices are disjoint, each drawn with its share of the rows: what is scaled up by `rows / slice` is unbiased.
    """
    rows = x.shape[0] if x.dim() else 1
    slices = -(-rows // max(1, min(rows, size * rows // max(x.numel(), 1)))) if rows else 1
    k = int(torch.randint(max(rows, 1), ())) * slices // max(rows, 1)
    first, last = -(-k * rows // slices), -(-(k + 1) * rows // slices)
    return lambda tensor: tensor[first:last] if tensor.dim() else tensor


def gate_gradient(value: Tensor, onehot: Tensor, inner: Any) -> Tensor:
    """`value` unchanged, whose backward pass gives `onehot` the inner products `<gradient, value of rung k>`.

    Args:
        value: the tensor of the drawn rung.
        onehot: drawn rungs `[*gates, B]`; the gradient is summed over what shares a gate.
        inner: function of a part of the gradient, and of a function that takes this part from tensors shaped like it,
            to the inner products `[*gates, B]`. With one shared gate the part is random, and the result scaled up.
    """
    return _GateGradient.apply(value, onehot, inner)


class _GateGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, onehot: Tensor, inner: Any) -> Tensor:
        ctx.shared, ctx.inner = onehot.dim() == 1, inner
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        if not ctx.needs_input_grad[1]:
            return grad, None, None
        if not ctx.shared:
            return grad, ctx.inner(grad, lambda tensor: tensor), None
        part = random_part(grad)
        return grad, ctx.inner(part(grad), part) * (grad.numel() / part(grad).numel()), None


def inner_products(grad: Tensor, values: Sequence[Tensor], gates: tuple[int, ...] = ()) -> Tensor:
    """`<grad, value>` for each of the values of `B` rungs, summed over what shares a gate: `[*gates, B]`."""
    return torch.stack([(grad * value).sum_to_size(gates) for value in values], -1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.reshape(-1), b.reshape(-1))
