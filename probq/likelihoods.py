"""Likelihoods: functions from a network's output to a `torch.distributions` law of the target."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution
from torch.distributions import Normal as NormalLaw

from probq.errors import ProbqError

Likelihood: TypeAlias = Callable[[Tensor], Distribution]


def categorical(output: Tensor) -> Distribution:
    """`target ~ Categorical(softmax(output))`, the classes on the last axis; in float32 where autocast gave less."""
    return Categorical(logits=output.float() if output.dtype in (torch.bfloat16, torch.float16) else output)


class Normal(nn.Module):
    """`target ~ Normal(output, sd)`.

    Args:
        sd: standard deviation of the noise; by default it is learned; `fit` starts it at the residuals of
            the float network.
    """

    def __init__(self, sd: float | None = None) -> None:
        super().__init__()
        if sd is not None and not sd > 0:
            raise ProbqError(f"Normal(sd=...) takes a standard deviation above 0, not {sd}")
        self.log_sd = nn.Parameter(torch.tensor(sd or 1.0).log(), requires_grad=sd is None)

    def forward(self, output: Tensor) -> Distribution:
        """Law of the target given the output."""
        return NormalLaw(output, self.log_sd.exp())


def for_target(target: Tensor) -> Likelihood:
    """The usual likelihood of a target: categorical for integers, normal with learned noise for real numbers."""
    return Normal() if target.is_floating_point() else categorical
