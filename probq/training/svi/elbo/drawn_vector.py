"""A vector of several weights is drawn from the laws over two nearest levels, with the gradients of a step.

It does what `Codes.draw_fused`, `WeightQuantizer.weight` and the divergence from the uniform prior do one by one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probq.codebooks.rounding.scales import hardware_scale
from probq.codebooks.rounding.stochastic import LevelGradient, inside_levels, log_odds, uniform


class Layout(NamedTuple):
    """A layout says where the numbers of `Q` weights lie in a vector of all `N`, and what they may be rounded to.

    Attributes:
        sizes: how many numbers each weight has, `Q` of them.
        owner: the weight of each number, int32 `[N]`.
        row: the scale of each number, among the `S` of one rung of all weights, int32 `[N]`.
        start, step, levels: of the grid of every rung, the last one their number, `[B]`.
        multipliers: see `hardware_scale`.
    """

    sizes: list[int]
    owner: Tensor
    row: Tensor
    start: Tensor
    step: Tensor
    levels: Tensor
    multipliers: int

    def sums(self, values: Tensor) -> Tensor:
        """Return the sum over the numbers of each weight, `[..., N]` to `[..., Q]`."""
        return torch.stack([part.sum(-1) for part in values.split(self.sizes, -1)], -1)

    def chosen(self, values: Tensor, rungs: list[int]) -> Tensor:
        """Return of `[B, N]` the row of each weight's rung, `[N]`."""
        return torch.cat([part[k] for part, k in zip(values.split(self.sizes, 1), rungs, strict=True)])

    def each(self, of_rung: Tensor, rungs: list[int]) -> Tensor:
        """Return of `[B]` the number of each weight's rung, `[N]`."""
        return of_rung[rungs].index_select(0, self.owner)

    def grid(self, rungs: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return start, step and count of each number's grid, `[N]` each."""
        start, step, count = (self.each(field, rungs) for field in (self.start, self.step, self.levels))
        return start, step, count

    def scales(self, every: Tensor, rungs: list[int]) -> Tensor:
        """Return of `[B, S]` the scale of each number on its weight's rung, `[N]`."""
        return every.reshape(-1).index_select(0, self._places(rungs, every.shape[1]))

    def of_scales(self, gradient: Tensor, rungs: list[int], shape: torch.Size) -> Tensor:
        """Return the sum over what shares a scale, `[N]` to `[B, S]`."""
        return torch.bincount(self._places(rungs, shape[1]), gradient, shape.numel()).reshape(shape).to(gradient.dtype)

    def laws(self, location: Tensor, log2_scales: Tensor, spread: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return scales `[B, N]`, spreads `[N]`, and of every rung the code below each location and its log-odds."""
        scales = hardware_scale(log2_scales, self.multipliers).index_select(1, self.row)
        spreads = spread.index_select(0, self.owner)
        start, step, count = (field.unsqueeze(1) for field in (self.start, self.step, self.levels))
        return scales, spreads, *log_odds(location, scales, spreads, start, step, count)

    def levels_at(self, codes: Tensor) -> Tensor:
        """Return the levels of codes on every rung `[B, N]`, between two of them too, in their place."""
        return codes.mul_(self.step.unsqueeze(1)).add_(self.start.unsqueeze(1))

    def _places(self, rungs: list[int], scales: int) -> Tensor:
        """Return the place of each number's scale among all of `[B, S]`, `[N]`."""
        return (
            self.each(torch.arange(len(self.start), dtype=self.row.dtype, device=self.row.device), rungs) * scales
            + self.row
        )


class Drawn(NamedTuple):
    """A draw of several weights is made from these laws.

    Attributes:
        location: of the codes, `[N]`.
        log2_scales: logarithms of the scales of every rung, `[B, S]`.
        spread: of the codes' law of each weight in steps, `[Q]`.
        onehots: the drawn rung of each weight, `[Q, B]`.
        probs: the probability of every rung, `[Q, B]`.
    """

    location: Tensor
    log2_scales: Tensor
    spread: Tensor
    onehots: Tensor
    probs: Tensor


def drawn_vector(drawn: Drawn, rungs: list[int], layout: Layout, kind: LevelGradient) -> tuple[Tensor, Tensor]:
    """Return drawn weights `[N]`, and the divergence of their codes from the uniform prior in nats, a scalar.

    Gradients: that of the levels is of the given kind, the divergence's is exact; the drawn rungs get the inner
    products of the incoming gradient with the mean weight of every rung, and the probabilities of rungs get the
    divergence there.

    Args:
        drawn: the laws, and the rungs drawn from them.
        rungs: these as numbers.
        layout: of the vector.
        kind: the gradient of drawn levels.
    """
    value, divergence = _DrawnVector.apply(*drawn, rungs, layout, kind)
    return value, divergence


class _DrawnVector(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        location: Tensor,
        log2_scales: Tensor,
        spread: Tensor,
        onehots: Tensor,
        probs: Tensor,
        rungs: list[int],
        layout: Layout,
        kind: LevelGradient,
    ) -> tuple[Tensor, Tensor]:
        scales, _, code, a = layout.laws(location, log2_scales, spread)
        p = a.sigmoid()
        entropy = a.clamp_min(0) - torch.maximum(p, 1 - p).log_() - a * p
        entropies = layout.sums(entropy).T
        sizes = torch.tensor(layout.sizes, dtype=p.dtype, device=p.device).unsqueeze(1)
        divergences = sizes * layout.levels.log() - entropies
        means = layout.levels_at(code + p).mul_(scales)
        a, p, code, scale = (layout.chosen(every, rungs) for every in (a, p, code, scales))
        up = torch.lt(uniform(p), p).to(p.dtype)
        level = code.add_(up).mul_(layout.each(layout.step, rungs)).add_(layout.each(layout.start, rungs))
        ctx.save_for_backward(location, spread, onehots, a, up.bool(), level, scale, means, divergences)
        ctx.layout, ctx.kind, ctx.rungs, ctx.shape = layout, kind, rungs, log2_scales.shape
        return level * scale, (divergences * onehots).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        location, spread, onehots, a, up, level, scale, means, divergences = ctx.saved_tensors
        (of_value, of_divergence), layout, rungs = grads, ctx.layout, ctx.rungs
        p, spreads = a.sigmoid(), spread.index_select(0, layout.owner)  # one pass each, and no memory until here
        up = up.to(p.dtype)
        start, step, count = layout.grid(rungs)
        of_level, variance = of_value * scale, torch.addcmul(p, p, p, value=-1)
        of_draw = of_level * step * (variance if ctx.kind is LevelGradient.MEAN else (up - p).abs_().mul_(0.5))
        of_a = variance.mul_(a).mul_(of_divergence)
        of_spread = layout.sums((of_a + of_draw).mul_(a)) / -spread
        if ctx.kind is LevelGradient.STRAIGHT_THROUGH:
            of_location = of_a / (scale * spreads * step)
            of_location += inside_levels(of_level, location / scale, start, step, count) / scale
        else:
            of_location = of_a.add_(of_draw) / (scale * spreads * step)
        of_scale = of_value * level - of_location * location / scale
        of_log2 = layout.of_scales(of_scale * scale * math.log(2), rungs, ctx.shape)
        of_onehot = None
        if ctx.needs_input_grad[3]:
            others = layout.sums(means * of_value).T
            taken = layout.sums(level * of_level).unsqueeze(1)
            of_onehot = torch.where(onehots > 0, taken, others)
        return of_location, of_log2, of_spread, of_onehot, divergences * of_divergence, None, None, None
