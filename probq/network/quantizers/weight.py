"""A weight's quantizer gives the laws of its codes, their priors, and the gradients that reach the gates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from probq.codebooks.rounding.nearest import nearest_level
from probq.codebooks.rounding.scales import best_log2_scale, hardware_scale
from probq.codebooks.rounding.stochastic import two_nearest_entropies, two_nearest_means
from probq.estimators.estimator import OfRung
from probq.estimators.gate_gradients import (
    ENTROPY_SAMPLE,
    Part,
    gate_gradient,
    inner_products,
    products,
    random_part,
)
from probq.network.distributions.categorical_codes import CategoricalCodes, logits_at, logits_like
from probq.network.distributions.codes import Codes
from probq.network.distributions.uniform_codes import UniformCodes
from probq.network.quantizers.base import Quantizer, Rung
from probq.network.quantizers.plan import Plan
from probq.priors import OnRung, WidthPrior

# From a part of the location, the scales there and what takes that part to such numbers on every rung.
RungValues: TypeAlias = Callable[[Tensor, Tensor, Part], Sequence[Tensor]]

CERTAIN = 1e-3  # steps, a spread at which the nearest level is certain
LOG_CERTAIN = math.log(CERTAIN)


class WeightQuantizer(Quantizer):
    """A weight quantizer has an unknown width, and an unknown code for each weight.

    Args:
        weight: the trained weight; it sets the scales and stays the location of the codes' law. A meta tensor gives
            only its shape; the scales are then to be loaded.
        plan: the layer's plan.
        channel_axis: axis of the weight that runs over output channels.
        trained: the weight without a normalisation folded in, whose unit is that of the priors; by default the same.
    """

    def __init__(self, weight: Tensor, plan: Plan, channel_axis: int, trained: Tensor | None = None) -> None:
        channels = tuple(n if axis == channel_axis else 1 for axis, n in enumerate(weight.shape))
        gates = {"tensor": (), "channel": channels, "weight": tuple(weight.shape)}[plan.gates]
        scales = channels if plan.scales == "channel" else ()
        prior = plan.width_prior if isinstance(plan.width_prior, WidthPrior) else None  # an energy is the network's
        super().__init__(plan.weight, gates, scales, plan.multipliers, prior, plan.estimator)
        self.shape, self.channel_axis, self.nearest = tuple(weight.shape), channel_axis, plan.codes
        self.log_spread = nn.Parameter(torch.tensor(math.log(plan.spread)), requires_grad=plan.codes > 1)
        self.first_spread = plan.spread
        self.code_prior_law, self.free_codes = plan.code_prior, plan.free_codes
        given = weight if trained is None else trained
        self.zeros: Tensor | None  # weights that stay zero
        self.register_buffer("zeros", (given == 0) if plan.keep_zeros else None)
        if self.zeros is not None and weight.is_meta:
            self.zeros = torch.zeros(self.shape, dtype=torch.bool)
        if not weight.is_meta:
            self.calibrate(weight)
        self._free_laws(weight)
        self._prior_of(given)

    def _free_laws(self, weight: Tensor) -> None:
        """Make the parameters of a free law."""
        self.code_logits = nn.ParameterDict()
        for k, rung in enumerate(self.ladder.rungs if self.free_codes else ()):
            start = torch.zeros(*self.shape, rung.count)
            if not weight.is_meta:
                spread = self.log_spread.exp()
                start = logits_like(Codes(weight.detach(), self.scales()[k], self.levels(k), spread, rung.count))
            self.code_logits[str(k)] = nn.Parameter(start, requires_grad=rung.count > 1)

    def _prior_of(self, weight: Tensor) -> None:
        """Make what a prior other than the uniform one has of its own."""
        prior, like = self.code_prior_law, torch.zeros(self.shape) if weight.is_meta else weight.detach()
        own = {} if prior is None else prior.tensors(like, self.ladder)
        self.of_prior = tuple(own)
        for name, tensor in own.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(f"prior_{name}", tensor)
            else:
                self.register_buffer(f"prior_{name}", tensor)

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """Set every rung's scales to those with the least squared rounding error on `weight`.

        Zeros alone, from which some train a layer, have the scales of `1 / sqrt(inputs)`.
        """
        if not weight.any():
            weight = torch.full_like(weight, (self.shape[self.channel_axis] / weight.numel()) ** 0.5)
        for k in range(len(self.ladder)):
            self._calibrate_rung(k, weight)

    def _calibrate_rung(self, rung: int, weight: Tensor) -> None:
        """Set the scales of one rung."""
        shape = self.log2_scale.shape[1:]
        rows = weight.transpose(0, self.channel_axis) if shape else weight
        best = best_log2_scale(rows.contiguous(), self.levels(rung), shape.numel(), self.multipliers)
        self.log2_scale[rung] = best.reshape(shape)

    @property
    def spread(self) -> Tensor:
        """Return the spread of the codes' law in steps, next to none for a zero that is kept."""
        spread = self.log_spread.exp()
        return spread if self.zeros is None else torch.where(self.zeros, CERTAIN, spread)

    @property
    def is_certain(self) -> bool:
        """Return whether a draw of the codes is nearly surely the nearest levels, on every rung."""
        return self.nearest == 1 or (not self.free_codes and self.log_spread.item() <= LOG_CERTAIN)

    @torch.no_grad()
    def make_certain(self) -> None:
        """Make the law of the codes certain of the nearest levels, if its spread says how far codes stray."""
        if self.nearest > 1 and not self.free_codes:
            self.log_spread.fill_(LOG_CERTAIN)

    @torch.no_grad()
    def restore_spread(self) -> None:
        """Give a law that is certain the spread that the plan begins with."""
        if self.nearest > 1 and self.is_certain:
            self.log_spread.fill_(math.log(self.first_spread))

    def law(self, location: Tensor, rung: Rung, nearest: int | None = None) -> Codes:
        """Return the posterior of the codes on a drawn rung."""
        if self.free_codes:
            logits = self.code_logits[str(rung.index)]
            return CategoricalCodes(logits, rung.scale, rung.levels, hard=nearest == 1)  # type: ignore[arg-type]
        return Codes(location, rung.scale, rung.levels, self.spread, nearest or self.nearest)

    def code_prior(self, rung: Rung, onehot: Tensor, location: Tensor) -> UniformCodes:
        """Return the prior of the codes on a drawn rung; by default every level is equally probable.

        Args:
            rung: the drawn rung.
            onehot: the draw; if it carries a gradient, the code's divergence tells the gates what each rung costs.
            location: the location of the codes' law.
        """
        prior = self._prior(rung, lambda tensor: tensor, torch.Size(self.shape), location.device)
        if onehot.requires_grad:
            gates = self.probs() if self.estimator.exact_gates else onehot
            prior.gate_term = ((gates - gates.detach()) * self._divergences(location.detach())).sum()
        return prior

    def _prior(self, rung: Rung, part: Part, shape: torch.Size, device: torch.device) -> UniformCodes:
        """Return the prior on a rung of a part of the weight, which has the given shape."""
        law = self.code_prior_law
        if law is None:
            return UniformCodes(shape, rung.levels, device)
        there = {name: getattr(self, f"prior_{name}") for name in self.of_prior}
        own = {name: t if isinstance(t, nn.Parameter) else part(t) for name, t in there.items()}
        return law.law(OnRung(shape, rung.levels, rung.scale, own, device, rung.factor))

    @torch.no_grad()
    def _divergences(self, location: Tensor) -> Tensor:
        """Return `KL(codes || prior)` on every rung in nats, `[*gates, B]`.

        Where all weights share one gate it is estimated from a random part of them, scaled up.
        """
        part: Part = (lambda tensor: tensor) if self.gates else random_part(location, ENTROPY_SAMPLE)
        if self.code_prior_law is not None:
            return self._divergences_from(location, part)
        entropies = self._entropies(part(location), self._parts(part), part)
        counts = torch.tensor([float(rung.count) for rung in self.ladder.rungs], device=location.device)
        if not self.gates:
            return location.numel() * (counts.log() - entropies.flatten(1).mean(1))
        sharing = location.numel() // math.prod(self.gates)
        return sharing * counts.log() - torch.stack([e.sum_to_size(self.gates) for e in entropies], -1)

    def _entropies(self, location: Tensor, scales: Tensor, part: Part) -> Tensor:
        """Return the entropy of every code on every rung in nats, `[B, *location]`."""
        spread, grids = part(self.spread), self.grids()
        if grids is not None and self.nearest == 2 and not self.free_codes:
            return two_nearest_entropies(location, scales, spread, grids)
        return torch.stack([law.entropies() for law in self._laws(location, scales, part)])

    def _divergences_from(self, location: Tensor, part: Part) -> Tensor:
        """Return what `_divergences` does, under a prior that is not uniform."""
        here, scales = part(location), self._parts(part)
        each = []
        for k, law in enumerate(self._laws(here, scales, part)):
            prior: Any = self._prior(Rung(self.levels(k), scales[k], k), part, here.shape, here.device)
            each.append(prior.divergences(law))
        share = location.numel() / here.numel()
        return torch.stack([e.sum_to_size(self.gates) for e in each], -1) * share

    def _laws(self, location: Tensor, scales: Tensor, part: Part) -> list[Codes]:
        """Return the posterior of a part of the codes on every rung, given that part of the location and the scales."""
        if self.free_codes:
            every: Any = [self.levels(k) for k in range(len(self.ladder))]
            return [CategoricalCodes(part(self.code_logits[str(k)]), s, every[k]) for k, s in enumerate(scales)]
        spread = part(self.spread)
        return [Codes(location, s, self.levels(k), spread, self.nearest) for k, s in enumerate(scales)]

    def weight(self, codes: Tensor, location: Tensor, rung: Rung, onehot: Tensor) -> Tensor:
        """Return `scale * level`, whose backward pass also tells the gates what other rungs would have given."""
        return self.telling(codes * rung.scale, location, onehot)

    def telling(self, value: Tensor, location: Tensor, onehot: Tensor) -> Tensor:
        """Return the weight's value, whose backward pass also tells the gates what other rungs would have given."""
        if not onehot.requires_grad:
            return value
        location = location.detach()
        if self.free_codes or self.estimator.exact_gates:
            return self._through(value, location, onehot, self._means)

        def inner(grad: Tensor, part: Part) -> Tensor:
            grids, here, scales = self.grids(), part(location), self._parts(part)
            if grids is not None and not self.gates:
                return products(grad, here, scales, grids)
            values = [s * nearest_level(here / s, self.levels(k)) for k, s in enumerate(scales)]
            return inner_products(grad, values, self.gates)

        return gate_gradient(value, onehot, inner)

    def through_gates(self, value: Tensor, location: Tensor, onehot: Tensor, of_rung: OfRung) -> Tensor:
        """Return a number for each weight, whose backward pass tells the gates what other rungs would give on average.

        Args:
            value: on the drawn rung.
            location: the location of the codes.
            onehot: the drawn rung.
            of_rung: from the scale and the code law of any rung to the same number there.
        """
        if not onehot.requires_grad:
            return value

        def values(here: Tensor, scales: Tensor, part: Part) -> list[Tensor]:
            return [of_rung(s, law) for s, law in zip(scales, self._laws(here, scales, part), strict=True)]

        return self._through(value, location.detach(), onehot, values)

    def _through(self, value: Tensor, location: Tensor, onehot: Tensor, values: RungValues) -> Tensor:
        """Do as `through_gates`, with a function to every rung's value on a part of the location and the scales."""

        def inner(grad: Tensor, part: Part) -> Tensor:
            others = inner_products(grad, values(part(location), self._parts(part), part), self.gates)
            drawn = inner_products(grad, [part(value.detach())], self.gates)
            return torch.where(onehot.detach() > 0, drawn, others)

        return gate_gradient(value, onehot, inner)

    @torch.no_grad()
    def _means(self, location: Tensor, scales: Tensor, part: Part) -> Sequence[Tensor]:
        """Return the mean weight on every rung, `[B, *location]`."""
        grids = self.grids()
        if grids is not None and self.nearest == 2 and not self.free_codes:
            return two_nearest_means(location, scales, part(self.spread), grids).unbind()
        return [s * law.mean for s, law in zip(scales, self._laws(location, scales, part), strict=True)]

    @torch.no_grad()
    def place(self, rung: int, codes: Tensor) -> None:
        """Make given codes the most probable ones on one rung of a free law."""
        self.code_logits[str(rung)].copy_(logits_at(codes, self.ladder.rungs[rung].count))

    def _parts(self, part: Part) -> Tensor:
        """Return the scales of every rung on a part of the weight, without gradient, to broadcast with `[B, *part]`."""
        scales = hardware_scale(self.log2_scale, self.multipliers)
        if scales.dim() == 1:
            return scales.reshape(-1, *[1] * len(self.shape))
        return torch.stack([part(s) for s in scales]) if self.channel_axis == 0 else scales
