"""The likelihood that a fit takes by default, and whether targets fit it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probq.likelihoods import Likelihood, for_target, only_tensor
from probq.network.program.program import Observation, Program
from probq.network.program.substitution import running, substitute
from probq.network.tracing.arguments import arguments


@torch.no_grad()
def usual_likelihood(q: Program, x: Any, y: Tensor) -> Likelihood:
    """The likelihood that `for_target` takes for a batch and what the float network makes of it."""
    if y.is_floating_point():
        return for_target(y)
    with q.evaluating(), running(x):
        output = substitute(q.net, {}, {}, {}, *arguments(x))
    return for_target(y, only_tensor(output))


@torch.no_grad()
def check_targets(q: Program, x: Any, y: Tensor) -> None:
    """Raise unless the targets of a batch can come from the likelihood's law for what the float network computes."""
    with q.evaluating(), running(x):
        output = substitute(q.net, {}, {}, {}, *arguments(x))
    Observation(q.law(output, y)).log_prob(y)
