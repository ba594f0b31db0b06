"""Quantizers: a ladder of codebooks, a scale per rung, the gates that choose a rung, and the law of the codes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from probq.codebooks import Grid, Ladder, Table
from probq.distributions import Codes, UniformCodes, Widths
from probq.errors import ProbqError
from probq.gate_gradients import ENTROPY_SAMPLE, gate_gradient, inner_products, products, random_part, round_input
from probq.plan import Plan
from probq.rounding import Grids, Levels, nearest_level
from probq.scales import MULTIPLIERS, best_log2_scale, snapped, through
from probq.stochastic_rounding import two_nearest_entropies

OPEN = 2.0
TIE = 2.0**-40  # far below the distance of any two accumulators, far above what averages err by in float64
FINEST_LEVEL = 1 / 16


@dataclass(frozen=True)
class Rung:
    """One drawn rung: its levels and scale; where gates are not shared by all, tensors that broadcast."""

    levels: Levels
    scale: Tensor


class Quantizer(nn.Module):
    """What weights and inputs have in common: ladder, gates and scales.

    Args:
        ladder: the codebooks to choose from.
        gates: shape of what has a width of its own, broadcastable to the tensor; `()` for one shared width.
        scales: shape of what has a scale of its own, broadcastable to the tensor.
        multipliers: see `snapped`.
    """

    def __init__(
        self, ladder: Ladder, gates: tuple[int, ...] = (), scales: tuple[int, ...] = (), multipliers: int = 1
    ) -> None:
        super().__init__()
        self.ladder, self.gates, self.multipliers = ladder, gates, multipliers
        if gates and not all(isinstance(rung, Grid) for rung in ladder.rungs):
            raise ProbqError(
                "gates per channel or weight need equally spaced codebooks (uniform, binary, ternary or pruned); "
                'use Plan(gates="tensor") for powers of two and given levels'
            )
        self.logits = nn.Parameter(torch.full((*gates, len(ladder) - 1), OPEN), requires_grad=len(ladder) > 1)
        self.log2_scale = nn.Parameter(torch.zeros(len(ladder), *scales))
        self.tables = nn.ParameterDict(
            {str(k): r.levels() for k, r in enumerate(ladder.rungs) if isinstance(r, Table) and r.learned}
        )
        self.fixed: Tensor | None
        self.register_buffer("fixed", None)
        self.tuned: Tensor | None  # rungs that the last fit measured as best and tuned the network for
        self.register_buffer("tuned", None)

    @property
    def free(self) -> bool:
        """Whether the width is unknown: more than one rung, and not fixed by a decision."""
        return len(self.ladder) > 1 and self.fixed is None

    def widths(self) -> Widths:
        """Posterior over the rungs, batch shape `gates`."""
        return Widths(self.logits)

    def prior(self) -> Widths:
        """Prior over the rungs: all equally probable."""
        remaining = torch.arange(len(self.ladder) - 1, 0, -1, dtype=self.logits.dtype, device=self.logits.device)
        return Widths(remaining.log().expand_as(self.logits))

    def probs(self) -> Tensor:
        """Probability of each rung `[*gates, B]`, all on one rung where the width is fixed."""
        if self.fixed is not None:
            return F.one_hot(self.fixed, len(self.ladder)).to(self.logits.dtype)
        return self.widths().probs

    def fix(self, widths: Any) -> None:
        """Fix the width.

        Args:
            widths: in bits, an int or an array of the shape `gates`.

        Raises:
            ProbqError: if a width is not on the ladder.
        """
        bits = np.broadcast_to(np.asarray(widths), self.gates)
        if not np.isin(bits, self.ladder.bits).all():
            raise ProbqError(f"a width of {widths} bits is not on the ladder {self.ladder.bits}")
        self.fixed = torch.as_tensor(np.searchsorted(self.ladder.bits, bits)).to(self.logits.device)

    def levels(self, rung: int) -> Grid | Tensor:
        """Levels of one rung: a grid, or a tensor `[K]` (learned ones snapped to multiples of 1/16)."""
        book = self.ladder.rungs[rung]
        if isinstance(book, Grid):
            return book
        if not book.learned:
            return book.levels().to(self.logits)
        values = torch.sort(self.tables[str(rung)])[0]
        snapped = torch.round(values.detach() / FINEST_LEVEL) * FINEST_LEVEL
        return snapped + (values - values.detach())

    def grids(self) -> list[Grid] | None:
        """The rungs where all of them are equally spaced, else None."""
        grids = [rung for rung in self.ladder.rungs if isinstance(rung, Grid)]
        return grids if len(grids) == len(self.ladder) else None

    def scales(self) -> Tensor:
        """Scale of every rung, `[B, *scales]`."""
        return through(snapped(self.log2_scale, self.multipliers), self.log2_scale)

    def rung(self, index: Tensor) -> Rung:
        """The rung of each gate, `index` of shape `gates`."""
        if not self.gates:
            k = int(index)
            return Rung(self.levels(k), self.scales()[k])
        grids = [rung for rung in self.ladder.rungs if isinstance(rung, Grid)]
        fields = torch.tensor([[g.start, g.step, g.count] for g in grids], device=index.device)
        start, step, count = fields[index].unbind(-1)
        scale = sum((index == k) * scale for k, scale in enumerate(self.scales()))
        return Rung(Grids(start, step, count), scale)


class WeightQuantizer(Quantizer):
    """Quantizer of a weight: unknown width, unknown code for each weight.

    Args:
        weight: the trained weight; it sets the scales and stays the location of the codes' law. A meta tensor gives
            only its shape; the scales are then to be loaded.
        plan: the layer's plan.
        channel_axis: axis of the weight that runs over output channels.
    """

    def __init__(self, weight: Tensor, plan: Plan, channel_axis: int) -> None:
        channels = tuple(n if axis == channel_axis else 1 for axis, n in enumerate(weight.shape))
        gates = {"tensor": (), "channel": channels, "weight": tuple(weight.shape)}[plan.gates]
        scales = channels if plan.scales == "channel" else ()
        super().__init__(plan.weight, gates, scales, MULTIPLIERS if plan.profile == "dyadic" else 1)
        self.shape, self.channel_axis, self.nearest = tuple(weight.shape), channel_axis, plan.codes
        self.log_spread = nn.Parameter(torch.tensor(math.log(plan.spread)), requires_grad=plan.codes > 1)
        if not weight.is_meta:
            self.calibrate(weight)

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """Set every rung's scales to those with the least squared rounding error on `weight`."""
        shape = self.log2_scale.shape[1:]
        rows = weight.transpose(0, self.channel_axis) if shape else weight
        for k in range(len(self.ladder)):
            best = best_log2_scale(rows.contiguous(), self.levels(k), shape.numel(), self.multipliers)
            self.log2_scale[k] = best.reshape(shape)

    def law(self, location: Tensor, rung: Rung, nearest: int | None = None) -> Codes:
        """Posterior of the codes on a drawn rung."""
        return Codes(location, rung.scale, rung.levels, self.log_spread.exp(), nearest or self.nearest)

    def code_prior(self, rung: Rung, onehot: Tensor, location: Tensor) -> UniformCodes:
        """Prior of the codes on a drawn rung: every level equally probable.

        Args:
            rung: the drawn rung.
            onehot: the draw; if it carries a gradient, the code's divergence tells the gates what each rung costs.
            location: of the codes' law.
        """
        prior = UniformCodes(torch.Size(self.shape), rung.levels, location.device)
        if onehot.requires_grad:
            prior.gate_term = ((onehot - onehot.detach()) * self._divergences(location.detach())).sum()
        return prior

    @torch.no_grad()
    def _divergences(self, location: Tensor) -> Tensor:
        """`KL(codes || prior)` on every rung in nats, `[*gates, B]`.

        Where all weights share one gate it is estimated from a random part of them, scaled up.
        """
        part = (lambda tensor: tensor) if self.gates else random_part(location, ENTROPY_SAMPLE)
        entropies = self._entropies(part(location), self._parts(part))
        counts = torch.tensor([float(rung.count) for rung in self.ladder.rungs], device=location.device)
        if not self.gates:
            return location.numel() * (counts.log() - entropies.flatten(1).mean(1))
        sharing = location.numel() // math.prod(self.gates)
        return sharing * counts.log() - torch.stack([e.sum_to_size(self.gates) for e in entropies], -1)

    def _entropies(self, location: Tensor, scales: Tensor) -> Tensor:
        """Entropy of every code on every rung in nats, `[B, *location]`."""
        spread, grids = self.log_spread.exp(), self.grids()
        if grids is not None and self.nearest == 2:
            return two_nearest_entropies(location, scales, spread, grids)
        laws = [Codes(location, s, self.levels(k), spread, self.nearest) for k, s in enumerate(scales)]
        return torch.stack([law.entropies() for law in laws])

    def weight(self, codes: Tensor, location: Tensor, rung: Rung, onehot: Tensor) -> Tensor:
        """The weight `scale * level`; its backward pass also tells the gates what other rungs would have given."""
        value = codes * rung.scale
        if not onehot.requires_grad:
            return value
        location = location.detach()

        def inner(grad: Tensor, part: Any) -> Tensor:
            grids, here, scales = self.grids(), part(location), self._parts(part)
            if grids is not None and not self.gates:
                return products(grad, here, scales, grids)
            values = [s * nearest_level(here / s, self.levels(k)) for k, s in enumerate(scales)]
            return inner_products(grad, values, self.gates)

        return gate_gradient(value, onehot, inner)

    def _parts(self, part: Any) -> Tensor:
        """Scales of every rung on a part of the weight, without gradient, to broadcast against `[B, *part]`."""
        scales = snapped(self.log2_scale, self.multipliers)
        if scales.dim() == 1:
            return scales.reshape(-1, *[1] * len(self.shape))
        return torch.stack([part(s) for s in scales]) if self.channel_axis == 0 else scales


class InputQuantizer(Quantizer):
    """Quantizer of a layer's input: unknown width, deterministic rounding, one scale for each rung."""

    def __init__(self, ladder: Ladder, sample: Tensor) -> None:
        super().__init__(ladder)
        if not sample.is_meta:
            self.calibrate(sample)

    @torch.no_grad()
    def calibrate(self, sample: Tensor) -> None:
        """Set every rung's scale to the one with the least squared rounding error on `sample`."""
        flat = sample.detach().reshape(-1)
        if flat.numel() > 65536:
            flat = flat[torch.linspace(0, flat.numel() - 1, 65536, dtype=torch.float64).long()]
        for k in range(len(self.ladder)):
            self.log2_scale[k] = best_log2_scale(flat, self.levels(k), 1).reshape(())

    def forward(self, x: Tensor, onehot: Tensor, exact: bool = False) -> Tensor:
        """`scale * nearest(x / scale)` on the rung that the one-hot `onehot` `[B]` names.

        Args:
            x: the input.
            onehot: drawn rung.
            exact: round without any floating-point error, as the integer model does; slower.
        """
        grids = self.grids()
        if grids is not None and not exact:
            return round_input(x, onehot, self.scales(), grids)
        rung = self.rung(onehot.detach().argmax(-1))
        gradient = torch.is_grad_enabled()  # without one, draws can be run together by torch.func.vmap
        value = rung.scale * nearest_level(x / rung.scale + exact * TIE, rung.levels, straight_through=gradient)
        if not onehot.requires_grad:
            return value
        scales = self.scales().detach()

        def inner(grad: Tensor, part: Any) -> Tensor:
            here = part(x.detach())
            return inner_products(grad, [s * nearest_level(here / s, self.levels(k)) for k, s in enumerate(scales)])

        return gate_gradient(value, onehot, inner)
