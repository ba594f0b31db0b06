"""All small weights of a network are drawn, or rounded, as one vector: a few operations in place of some for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from probq.codebooks import Grid
from probq.codebooks.rounding.nearest import BroadcastGrid
from probq.codebooks.rounding.scales import attach_scale_gradient, hardware_scale
from probq.codebooks.rounding.stochastic import LevelGradient
from probq.estimators import Estimator, SecondOrder, StraightThrough
from probq.network.program.program import Program
from probq.network.quantizers.weight import WeightQuantizer
from probq.training.svi.elbo.drawn_vector import Drawn, Layout, drawn_vector
from probq.training.svi.elbo.rounded_vector import Rounded, rounded_vector
from probq.training.svi.elbo.rounded_weight import rounded_weight
from probq.training.svi.elbo.width_laws import DrawnWidths

MOST = 8192  # numbers of a weight; above it the passes over the weight take longer than the calls that make them


class SmallWeights:
    """These are the weights of a network that have few numbers and the usual laws, in groups of equal ladders.

    Usual are codes of the two nearest levels under the uniform prior, a width for the whole tensor, and the gradients
    of `SecondOrder` or `StraightThrough`.

    Args:
        q: the network.
    """

    def __init__(self, q: Program) -> None:
        self.q = q
        found: dict[tuple[tuple[Grid, ...], int], list[str]] = {}
        for name, quantizer in q.weights.items():
            grids = quantizer.grids()
            if grids is not None and _usual(quantizer) and math.prod(quantizer.shape) <= MOST:
                found.setdefault((tuple(grids), quantizer.multipliers), []).append(name)
        self.groups = [_group(q, names, *key) for key, names in found.items()]
        self.names = frozenset(name for names in found.values() for name in names)

    def values(self, widths: DrawnWidths) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the drawn or rounded value of each weight, and what their divergences from the prior add up to.

        Args:
            widths: the rung of every quantizer.
        """
        values: dict[str, Tensor] = {}
        divergences: list[Tensor] = []
        for group in self.groups:
            flat, divergence = self._vector(group, widths)
            if divergence is not None:
                divergences.append(divergence)
            parts = flat.split(group.layout.sizes)
            values.update(
                (name, part.reshape(quantizer.shape))
                for name, quantizer, part in zip(group.names, group.quantizers, parts, strict=True)
            )
        return values, divergences

    def _vector(self, group: WeightGroup, widths: DrawnWidths) -> tuple[Tensor, Tensor | None]:
        """Return the weights of a group as one vector, and the divergence of what is drawn."""
        location = torch.cat([self.q.net.get_parameter(name).reshape(-1) for name in group.names])
        log2_scales = torch.cat([z.log2_scale.reshape(len(z.ladder), -1) for z in group.quantizers], 1)
        rungs = [widths.rungs[name] for name in group.names]
        if self.q.rounding and not any(quantizer.free for quantizer in group.quantizers):
            every = attach_scale_gradient(hardware_scale(log2_scales, group.layout.multipliers), log2_scales)
            grids = BroadcastGrid(*group.layout.grid(rungs))
            return rounded_weight(location, group.layout.scales(every, rungs), grids), None
        spread = torch.stack([z.log_spread for z in group.quantizers]).exp()
        onehots, probs = (torch.stack([found[name] for name in group.names]) for found in widths[:2])
        if self.q.rounding:
            return rounded_vector(Rounded(location, log2_scales, spread, onehots), rungs, group.layout), None
        drawn = Drawn(location, log2_scales, spread, onehots, probs)
        return drawn_vector(drawn, rungs, group.layout, self._gradient(group))

    @property
    def usable(self) -> bool:
        """Return whether each group can be drawn, or rounded, as one now.

        Not where a decision for some of its weights gave their codes another estimator.
        """
        return all(len({type(e) for e in self._estimators(group)}) == 1 for group in self.groups)

    def _gradient(self, group: WeightGroup) -> LevelGradient:
        """Return the gradient of the levels; outside of training it is that of the law's own draws."""
        if not self.q.training:
            return LevelGradient.MEAN
        through = isinstance(self._estimators(group)[0], StraightThrough)
        return LevelGradient.STRAIGHT_THROUGH if through else LevelGradient.SECOND_ORDER

    def _estimators(self, group: WeightGroup) -> list[Estimator]:
        return [quantizer.code_estimator(self.q.temperature) for quantizer in group.quantizers]


class WeightGroup(NamedTuple):
    """A group has weights with the same codebooks to choose from.

    Attributes:
        names: of the quantizers.
        quantizers: in this order.
        layout: where the numbers of each lie in the vector of all.
    """

    names: tuple[str, ...]
    quantizers: tuple[WeightQuantizer, ...]
    layout: Layout


def _usual(quantizer: WeightQuantizer) -> bool:
    plain = quantizer.nearest == 2 and not quantizer.free_codes and not quantizer.gates
    own = quantizer.code_prior_law is not None or quantizer.zeros is not None
    return plain and not own and quantizer.chosen_estimator in (None, SecondOrder(), StraightThrough())


def _group(q: Program, names: Sequence[str], grids: Sequence[Grid], multipliers: int) -> WeightGroup:
    quantizers = tuple(q.weights[name] for name in names)
    return WeightGroup(tuple(names), quantizers, _layout(quantizers, grids, multipliers, q.device))


def _layout(
    quantizers: Sequence[WeightQuantizer], grids: Sequence[Grid], multipliers: int, device: torch.device
) -> Layout:
    sizes = [math.prod(quantizer.shape) for quantizer in quantizers]
    rows, before = [], 0
    for quantizer in quantizers:
        shape = quantizer.log2_scale.shape[1:]
        own = torch.arange(before, before + shape.numel()).reshape(shape)
        rows.append(own.expand(quantizer.shape).reshape(-1))
        before += shape.numel()
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    fields = torch.tensor([[g.start, g.step, g.count] for g in grids], dtype=torch.get_default_dtype())
    start, step, levels = fields.to(device).unbind(1)
    owner, row = (index.to(device, torch.int32) for index in (owner, torch.cat(rows)))
    return Layout(sizes, owner, row, start, step, levels, multipliers)
