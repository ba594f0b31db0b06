"""An energy is taken for the prior of a fit, which then starts at the widths that the energy would choose."""

from __future__ import annotations

import numpy as np
import torch

from probq.cost.budget import Budgets
from probq.decisions.widths import fixed_by_decision
from probq.network.program.width_prior import set_width_prior
from probq.network.quantized.quantized import Quantized
from probq.network.quantizers.base import OPEN
from probq.priors.energies.energy import Energy
from probq.training.refinement.allocate import allocate
from probq.utils.errors import ProbqError
from probq.utils.numbers import exact_number


@torch.no_grad()
def take_prior(q: Quantized, energy: Energy, budget: Budgets, size: int) -> None:
    """Set the prior of widths to `exp(-size energy / temperature)`, and the gates to the allocation under a budget.

    Args:
        q: the network, with a temperature.
        energy: in nats for one example.
        budget: a limit, several, or None.
        size: number of examples.

    Raises:
        ProbqError: if it is no energy, or one of another network, plan or unit, or the widths are fixed.
    """
    if not isinstance(energy, Energy):
        raise ProbqError(f"prior is an Energy, such as probq.criteria.loss(q, batches), not {energy!r:.80}")
    if fixed_by_decision(q):
        raise ProbqError("a prior of widths has no effect on a network whose widths are fixed; leave prior out")
    set_width_prior(q, (size / q.temperature) * energy)
    if budget is None:
        return
    widths = allocate(q, energy, budget).widths
    for name, quantizer in q.named_sites():
        rung = quantizer.ladder.bits.index(exact_number(np.asarray(widths[name]).reshape(-1)[0]))
        places = torch.arange(len(quantizer.ladder) - 1, device=q.device)
        quantizer.logits.copy_(torch.where(places < rung, OPEN, -OPEN).expand_as(quantizer.logits))
