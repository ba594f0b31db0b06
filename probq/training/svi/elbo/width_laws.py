"""The laws of all widths are drawn from, and compared with their priors, together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from probq.estimators import Estimator
from probq.network.distributions.widths import Widths
from probq.network.program.program import Program
from probq.network.quantizers.base import Quantizer


class DrawnWidths(NamedTuple):
    """Drawn widths are what one draw of all laws of widths gives.

    Attributes:
        onehots: the drawn rung of every quantizer, `[*gates, B]`, with the gradient of its estimator.
        probs: the probability of every rung of every quantizer, `[*gates, B]`.
        rungs: the drawn rung of each quantizer with one gate, as a number.
        divergence: of all laws from their priors in nats, a scalar; None where no width is free.
    """

    onehots: Mapping[str, Tensor]
    probs: Mapping[str, Tensor]
    rungs: Mapping[str, int]
    divergence: Tensor | None


class WidthGroup(NamedTuple):
    """A group has quantizers with one gate for the whole tensor, equally many rungs and one estimator.

    Attributes:
        names: of the quantizers.
        quantizers: in this order.
        estimator: of their gates' gradient.
        prior: the priors' log-odds of the gates, `[quantizers, B - 1]`.
    """

    names: tuple[str, ...]
    quantizers: tuple[Quantizer, ...]
    estimator: Estimator
    prior: Tensor

    def law(self) -> Widths:
        """Return the law of all widths of the group, batch shape `[quantizers]`."""
        return self.estimator.widths(torch.stack([quantizer.logits for quantizer in self.quantizers]))


class WidthLaws:
    """These are the laws of all widths of a network, as they stand; a decision or another prior makes others.

    Args:
        q: the network.
    """

    def __init__(self, q: Program) -> None:
        self.q, self._seen = q, _state(q)
        self.groups: list[WidthGroup] = []
        self.others: list[tuple[str, Quantizer, Widths]] = []
        self.certain: dict[str, Tensor] = {}
        self.fixed: dict[str, int] = {}
        found: dict[tuple[int, Estimator], list[str]] = {}
        for name, quantizer in q.named_sites():
            if not quantizer.free:
                self.certain[name] = onehot = quantizer.probs().detach()
                if not quantizer.gates:
                    self.fixed[name] = int(onehot.argmax())
            elif quantizer.gates:
                self.others.append((name, quantizer, quantizer.prior()))
            else:
                found.setdefault((len(quantizer.ladder), quantizer.estimator), []).append(name)
        for (_, estimator), names in found.items():
            own = tuple(q.quantizer(name) for name in names)
            prior = torch.stack([quantizer.prior().logits.detach() for quantizer in own])
            self.groups.append(WidthGroup(tuple(names), own, estimator, prior))

    @property
    def stand(self) -> bool:
        """Return whether nothing was decided, released, or given another prior since."""
        return all(a is b for a, b in zip(self._seen, _state(self.q), strict=True))

    def draw(self) -> DrawnWidths:
        """Draw a rung of every quantizer."""
        onehots, probs, rungs, parts = dict(self.certain), dict(self.certain), dict(self.fixed), []
        for group in self.groups:
            law = group.law()
            parts.append(kl_divergence(law, Widths(group.prior, validate_args=False)).sum())
            drawn = law.rsample()
            onehots.update(zip(group.names, drawn.unbind(), strict=True))
            rungs.update(zip(group.names, drawn.detach().argmax(-1).tolist(), strict=True))
            probs.update(zip(group.names, law.probs.unbind(), strict=True))
        for name, quantizer, prior in self.others:
            law = quantizer.widths()
            parts.append(kl_divergence(law, prior).sum())
            onehots[name], probs[name] = law.rsample(), law.probs
        for name, site in self.q.sites.items():
            onehots[name], probs[name] = onehots[site], probs[site]
            if site in rungs:
                rungs[name] = rungs[site]
        return DrawnWidths(onehots, probs, rungs, torch.stack(parts).sum() if parts else None)


def _state(q: Program) -> list[Any]:
    """Return the objects that the laws are made of; where each is the same one, so are they."""
    return [part for _, z in q.named_sites() for part in (z.fixed, z.width_prior, z.chosen_estimator)]
