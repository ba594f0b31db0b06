"""A network is made ready for a fit here: its likelihood, the scales of its inputs, and targets that suit it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probq.decisions.widths import fixed_by_decision
from probq.likelihoods import Likelihood, for_target, for_targets, only_tensor
from probq.likelihoods.network_likelihood import check_likelihood
from probq.network.distributions.observation import Observation
from probq.network.program.program import Program
from probq.network.program.substitution import running, substitute
from probq.network.quantized.quantized import Quantized
from probq.training.ptq.input_scales import set_input_scales
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError
from probq.utils.structures.targets import Targets
from probq.utils.structures.tensors import arguments


@torch.no_grad()
def usual_likelihood(q: Program, x: Any, y: Any) -> Likelihood:
    """Return the likelihood that `for_target` takes for a batch and what the float network makes of it."""
    if y.is_floating_point():
        return for_target(y)
    with q.evaluating(), running(x):
        output = substitute(q.net, {}, {}, {}, *arguments(x))
    if isinstance(y, Targets):
        return for_targets(y.of, output)
    return for_target(y, only_tensor(output))


@torch.no_grad()
def check_targets(q: Program, x: Any, y: Tensor) -> None:
    """Raise unless the targets of a batch can come from the likelihood's law for what the float network computes."""
    with q.evaluating(), running(x):
        output = substitute(q.net, {}, {}, {}, *arguments(x))
    Observation(q.law(output, y)).log_prob(y)


def prepare(q: Quantized, data: Batches, likelihood: Likelihood | None, temperature: float) -> None:
    """Set likelihood and scales as the data has them; on an error the network's likelihood stays as it was."""
    check_likelihood(likelihood)
    before, q.temperature = q.likelihood, temperature
    try:
        if likelihood is not None:
            _take(q, likelihood)
        if q.likelihood is None:
            x, y = next(iter(data))
            q.likelihood = usual_likelihood(q, x, y)
            check_targets(q, x, y)
        if isinstance(q.likelihood, torch.nn.Module):
            q.likelihood.to(q.device)
        if not q.calibrated and not fixed_by_decision(q):
            set_input_scales(q, data)
    except ProbqError:
        _take(q, before)
        raise


def _take(q: Quantized, likelihood: Likelihood | None) -> None:
    del q.likelihood  # torch lets no function take a module's place
    q.likelihood = likelihood
