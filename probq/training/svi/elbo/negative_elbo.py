"""This module computes the negative ELBO of one draw, equal to that of Pyro's traces of model and guide."""

from __future__ import annotations

from collections.abc import Container, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from probq.codebooks import Grid
from probq.network.distributions.observation import Observation
from probq.network.program.program import Program
from probq.network.program.substitution import running
from probq.network.quantizers.base import Rung
from probq.training.distillation.lessons import Lesson
from probq.training.processes.alone import Processes
from probq.training.svi.elbo.rounded_weight import rounded_weight
from probq.training.svi.elbo.scales import Scales
from probq.training.svi.elbo.small_weights import SmallWeights
from probq.training.svi.elbo.width_laws import DrawnWidths, WidthLaws
from probq.utils.structures.tensors import map_tensors


class Elbo(NamedTuple):
    """This is what one draw gives, for all examples in nats.

    Attributes:
        loss: the negative ELBO, a scalar with gradients.
        nll: the negative log-likelihood of one example on average.
        probs: the probability of every rung of every quantizer.
        law: of the targets given the outputs.
        taught: the divergence of a lesson for one example on average, or None.
    """

    loss: Tensor
    nll: Tensor
    probs: Mapping[str, Tensor]
    law: Distribution
    taught: Tensor | None


class NegativeElbo:
    """This is the negative ELBO of a network, as `TraceMeanField_ELBO` has it, without the traces of Pyro.

        E_q[-log p(y | x)] + temperature * KL,

    the divergences exact, the likelihood of one draw. A trace records every site of model and guide; on small networks
    that took more than half of a step.

    Args:
        q: the network, with a likelihood.
        processes: of a fit, which all draw the same widths; by default one alone.
    """

    def __init__(self, q: Program, processes: Processes | None = None) -> None:
        self.q, self.processes = q, processes or Processes()
        self.laws = WidthLaws(q)
        self.small = SmallWeights(q)
        self.scales = Scales(q)

    def __call__(self, x: Any, y: Tensor, size: int, lesson: Lesson | None = None) -> Elbo:
        """Return the negative ELBO of a batch.

        Args:
            x: a batch of inputs, or a tuple of the network's arguments.
            y: targets.
            size: number of examples in the data set.
            lesson: what a teacher says to the batch.
        """
        if not self.laws.stand:
            self.laws = WidthLaws(self.q)
        q = self.q
        with self.processes.alike():
            drawn = self.laws.draw()
        output, divergence = self._output(x, drawn)
        law = q.law(output, y)
        log_prob = Observation(law).log_prob(y)
        parts = [part for part in (drawn.divergence, divergence) if part is not None]
        loss = log_prob.sum() * (-size / len(log_prob))
        taught = None
        if lesson is not None:
            taught = lesson.divergence(law, y).mean()
            loss = lesson.mixed(loss, taught * size)
        if parts:
            loss = loss + q.temperature * torch.stack(parts).sum()
        if q.pairs is not None:
            loss = loss + q.temperature * q.expected_pair_energy().to(loss)
        return Elbo(loss, -log_prob.detach().mean(), drawn.probs, law, None if taught is None else taught.detach())

    def _output(self, x: Any, drawn: DrawnWidths) -> tuple[Any, Tensor | None]:
        """Return the network's output at drawn codes, and their divergence from the prior."""
        q, scales = self.q, self.scales.now()
        own = self.scales.rungs(drawn, scales)
        rungs = {**own, **{name: q.folded_rung(name, own[name]) for name in q.weights}}
        small: Mapping[str, Tensor] = {}
        parts: list[Tensor] = []
        plain = all(rungs[name] is own[name] for name in self.small.names)  # else a fold changes scales and locations
        if plain and self.small.usable:
            small, parts = self.small.values(drawn)
        weights = {**small, **self._rounded(rungs, drawn, small)}
        levels = {name: self._levels(name, rungs[name], drawn, parts) for name in q.weights if name not in weights}
        others, noise = q.weight_values(drawn.onehots, levels, rungs)
        rounders = {
            name: partial(quantizer, onehot=drawn.onehots[name], scales=scales[name], rung=drawn.rungs[name])
            for name, quantizer in q.inputs.items()
        }
        with running(x), self.processes.precision():
            output = q.call({**weights, **others}, rungs, rounders, x, noise)
        output = map_tensors(_float, output)  # autocast leaves fewer digits than a likelihood needs
        return output, torch.stack(parts).sum() if parts else None

    def _rounded(self, rungs: Mapping[str, Rung], drawn: DrawnWidths, known: Container[str]) -> dict[str, Tensor]:
        """Return the weights that are rounded to grids, but those known already."""
        q, result = self.q, {}
        for name, quantizer in q.weights.items():
            levels = rungs[name].levels
            usual = not (quantizer.gates or quantizer.free_codes or q.draws_codes(quantizer))
            if usual and isinstance(levels, Grid) and name not in known:
                location = q.location(name, rungs[name])
                value = rounded_weight(location, rungs[name].scale, levels)
                onehot = drawn.onehots[name].detach() if q.fold(name) else drawn.onehots[name]
                result[name] = quantizer.telling(value, location, onehot)
        return result

    def _levels(self, name: str, rung: Rung, drawn: DrawnWidths, divergences: list[Tensor]) -> Tensor:
        """Return the drawn or rounded levels of one weight, and add the divergence of what is drawn to the others."""
        q, quantizer = self.q, self.q.weights[name]
        if not q.draws_codes(quantizer):
            return quantizer.law(q.location(name, rung), rung, 1).rsample()
        law = quantizer.law(q.location(name, rung), rung)
        law.estimate = quantizer.code_estimator(q.temperature).draw if q.training else None
        levels = law.rsample()  # before the divergence, for which a fused draw has made the entropy already
        divergences.append(kl_divergence(law, q.code_prior(name, rung, drawn.onehots[name])))
        return levels


def _float(output: Tensor) -> Tensor:
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
