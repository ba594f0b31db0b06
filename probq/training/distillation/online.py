"""A teacher may learn while it teaches."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from probq.network.distributions.observation import Observation
from probq.network.program.program import Program
from probq.network.program.substitution import running
from probq.network.tracing.arguments import own_copy
from probq.training.distillation.lessons import Lessons, Teacher, divergence
from probq.utils.arguments import is_real
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import arguments, call, map_tensors


def online(net: nn.Module, rate: float = 1e-3, weight: float = 0.5, temperature: float = 2.0) -> Teacher:
    """Return a teacher that learns from the same targets and from the network that it teaches.

    A copy of `net` is trained in float by Adam on

        (1 - w) (-log p_net(y | x)) + w T^2 KL(network || net),

    the mirror image of what the network learns from it. Its loss is no part of the bound. In trials it stays as the
    search left it, so that all choices of widths have the same teacher.

    Args:
        net: a network, trained or not, of the inputs of the network that is fitted, with outputs for the same
            likelihood.
        rate: its learning rate.
        weight: share `w` of the other one, above 0 and at most 1.
        temperature: `T`, above 0.

    Raises:
        ProbqError: if an option is not in its range, or nothing in the network can learn.

    Source: Y. Zhang, T. Xiang, T. M. Hospedales, H. Lu, 2018, "Deep Mutual Learning".

    Example:
        >>> teacher = online(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), rate=1e-2)
    """
    return Online(net, rate, weight=weight, temperature=temperature)


@dataclass(frozen=True)
class Online(Teacher):
    """This is the teacher of `online`."""

    net: nn.Module
    rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.net, nn.Module) or not any(p.requires_grad for p in self.net.parameters()):
            raise ProbqError("online takes a network with parameters that can learn (requires_grad)")
        if not is_real(self.rate) or not self.rate > 0:
            raise ProbqError(f"rate is the learning rate of the teacher, above 0, not {self.rate!r}")

    def begin(self, q: Program) -> Lessons:
        """Return the lessons of a fit."""
        return OnlineLessons(q, self)


class OnlineLessons(Lessons):
    """These are the lessons of a network that learns.

    Args:
        q: the network that learns from it.
        teacher: the options.
    """

    def __init__(self, q: Program, teacher: Online) -> None:
        super().__init__(q, teacher.weight, teacher.temperature)
        self.net = copy.deepcopy(teacher.net).to(q.device).train()
        self.moved = [p for p in self.net.parameters() if p.requires_grad]
        self.statistics = [b for b in self.net.buffers() if b.is_floating_point()]
        self.optimizer = torch.optim.Adam(self.moved, teacher.rate)
        self.said: Any = None

    def outputs(self, x: Any, learning: bool) -> Any:
        """Return what the teacher says, where it learns in training mode; it is kept with its graph for `study`."""
        self.net.train(learning)
        with running(x), torch.set_grad_enabled(learning):
            said = call(self.net, own_copy(arguments(x)))
        self.said = said if learning else None
        return map_tensors(Tensor.detach, said)

    def study(self, law: Distribution, y: Tensor, share: float) -> None:
        """Add the gradient of one batch to that of the step."""
        own, self.said = self.q.law(self.said, y), None
        nll = -Observation(own).log_prob(y).mean()
        loss = (1 - self.weight) * nll + self.weight * divergence(law, own, y, self.temperature).mean()
        (loss * share).backward(inputs=self.moved)

    def move(self) -> None:
        """Take a step of Adam."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the network's tensors and the optimizer's averages."""
        return {"network": dict(self.net.state_dict()), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self.net.load_state_dict(state_dict["network"])
        self.optimizer.load_state_dict(state_dict["optimizer"])
