"""These networks are so small that every width and every code can be enumerated, and a posterior can be proved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution

from probq.codebooks import Ladder, binary, ladder, ternary
from probq.likelihoods import Normal
from probq.network.quantize import quantize
from probq.network.quantized.quantized import Quantized
from probq.network.quantizers.plan import Plan
from probq.training.svi.elbo.leave_one_out import law_parameters as drawn_parameters


@dataclass(frozen=True)
class Small:
    """A small network says how it is made, and has a plan, a likelihood and inputs."""

    name: str
    make: Callable[[], nn.Module]
    features: int
    plan: Plan
    likelihood: Callable[[Tensor], Distribution] | None
    rows: int = 12

    def quantized(self, seed: int = 0, **changes: Any) -> tuple[Quantized, Tensor]:
        """Return the network with scales of its own random weights, and inputs; `changes` are those of the plan."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net, x = self.make(), torch.randn(self.rows, self.features)
            for weight in net.parameters():
                nn.init.normal_(weight, std=0.7)
        plan = Plan(**{**vars(self.plan), **changes})
        q = quantize(net, x, plan, self.likelihood)
        q.temperature = 1.0
        return q.train(), x

    def targets(self, q: Quantized, x: Tensor, seed: int = 0) -> Tensor:
        """Return targets drawn at the float weights."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1000 + seed)
            return q.law(q.net(x)).sample()


class Shared(nn.Module):
    """This network applies one layer twice, then sums."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return one number of two."""
        return self.layer(torch.tanh(self.layer(x))).sum(-1, keepdim=True)


def bernoulli(output: Tensor) -> Distribution:
    """Return the law `target ~ Bernoulli(sigmoid(output))`, one number for each example."""
    return Bernoulli(logits=output)


def _plan(weights: Ladder, **options: Any) -> Plan:
    own = {"network_input": ladder(8), "scales": "tensor", "profile": "shift", "spread": 0.5}
    return Plan(weight=weights, **{**own, **options})


def _linear(inputs: int, outputs: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(inputs, outputs, bias=False)


def _two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh(), nn.Linear(2, 1, bias=False))


def enumerable() -> Iterator[Small]:
    """Yield the networks: linear, logistic, two layers with learned input width, and a shared weight."""
    pair, three = ladder(0, binary()), ladder(0, ternary())
    free = {"free_codes": True}
    yield Small("linear", _linear(4, 1), 4, _plan(pair), Normal(0.7))
    yield Small("linear, ternary", _linear(5, 1), 5, _plan(three, **free), Normal(0.7))
    yield Small("logistic", _linear(5, 1), 5, _plan(pair), bernoulli, 16)
    yield Small("softmax, ternary", _linear(4, 2), 4, _plan(three, **free), None, 10)
    yield Small("two layers", _two_layers, 2, _plan(pair, input=ladder(2, 4)), Normal(0.5))
    yield Small("shared weight", Shared, 2, _plan(three, **free), Normal(0.5))


def law_parameters(q: Quantized) -> dict[str, nn.Parameter]:
    """Return the parameters of the posterior over widths and codes but for spreads; all others stop being trained."""
    laws = {id(parameter) for parameter in drawn_parameters(q)}
    for name, parameter in q.named_parameters():
        parameter.requires_grad_(id(parameter) in laws and not name.endswith("log_spread"))
    return {name: parameter for name, parameter in q.named_parameters() if parameter.requires_grad}


def fit_law(q: Quantized, loss: Callable[[], Tensor], steps: int, rate: float = 0.3) -> None:
    """Fit the posterior alone: Adam, whose rate falls to 0, and the mean of the parameters over the last half.

    The rate is `rate ((1 + cos(pi t)) / 2)^2`, `t` from 0 to 1: high at first, because log-odds of what is almost
    certain are far away, and below a quarter of that where parameters are averaged.

    Args:
        q: the network.
        loss: an estimate of the negative evidence lower bound, with its gradient.
        steps: number of estimates.
        rate: learning rate at the start.
    """
    parameters = list(law_parameters(q).values())
    optimizer = torch.optim.Adam(parameters, rate)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: ((1 + math.cos(math.pi * n / steps)) / 2) ** 2)
    mean = [torch.zeros_like(p) for p in parameters]
    for step in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        falling.step()
        if step >= steps // 2:
            for total, parameter in zip(mean, parameters, strict=True):
                total += parameter.detach() / (steps - steps // 2)
    with torch.no_grad():
        for total, parameter in zip(mean, parameters, strict=True):
            parameter.copy_(total)
