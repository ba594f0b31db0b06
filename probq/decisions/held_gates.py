"""Gates are held open in a cold search where 0 bits would cut the network in two."""

from __future__ import annotations

import numpy as np
import torch

from probq.cost.budget import Budgets
from probq.decisions.constrained_posterior import constrained_posterior
from probq.decisions.widths import format_widths
from probq.network.program.constant_outputs import sites_that_cut
from probq.network.program.program import Program
from probq.network.quantizers.base import HELD, OPEN, Quantizer

LAST_RESORT = -100.0  # nats; no draw is there if another one keeps the limits


@torch.no_grad()
def hold_gates(q: Program, budget: Budgets) -> None:
    """Hold the first gate open of every quantizer whose 0 bits alone make the network's outputs constant.

    A network drawn there gives its weights no gradient, so that the step is lost, and the gate hears of the loss of the
    closed layer alone, which the others then learn to do without. What searches at a temperature below 1 is not after
    the law of such networks. They are left in where the plan says how probable widths are, where temperature 1 makes
    the fit an inference over them, and where no other widths keep the budget.

    Args:
        q: the network, with a temperature; gates that an earlier search held are released first.
        budget: of the search, a limit, several, or None.
    """
    for _, quantizer in q.named_sites():
        quantizer.logits[quantizer.logits >= HELD] = OPEN
    if q.temperature >= 1:
        return
    held = [q.quantizer(name) for name in sites_that_cut(q)]
    held = [quantizer for quantizer in held if quantizer.free and quantizer.width_prior is None]
    for quantizer in held:
        quantizer.logits[..., 0] = HELD
    if not held or budget is None:
        return
    posterior = constrained_posterior(q, budget)
    widths = format_widths(q, posterior.problem.widths(posterior.most_probable()[0]))
    for name, quantizer in q.named_sites():
        if any(quantizer is one for one in held) and not np.any(widths[name]):
            quantizer.logits[..., 0] = OPEN


def is_held(quantizer: Quantizer) -> bool:
    """Return whether the search held the first gate of a quantizer open, and so left its first rung out."""
    return bool((quantizer.logits[..., :1] >= HELD).any())


def equal_laws(q: Program) -> dict[str, np.ndarray]:
    """Return equal log-probabilities of rungs, `[B]`, in nats; one that the search left out is a last resort."""
    laws = {name: np.zeros(len(quantizer.ladder)) for name, quantizer in q.named_sites()}
    for name, quantizer in q.named_sites():
        if is_held(quantizer):
            laws[name][0] = LAST_RESORT
    return laws
