"""A network is taught by its own earlier states."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from probq.network.program.program import Program
from probq.network.program.substitution import running, substitute
from probq.training.distillation.lessons import Lessons, Teacher
from probq.utils.arguments import is_real
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import arguments


def itself(decay: float = 0.999, weight: float = 0.5, temperature: float = 2.0) -> Teacher:
    """Return the network's own past as a teacher: the average of its parameters, `a <- d a + (1 - d) theta`, in float.

    After each step, the average moves to the real-valued parameters `theta` by the share `1 - d`; it starts at those
    that the fit starts from. The teacher computes without any rounding, in evaluation mode, with the present statistics
    of batch normalisation. In trials it stays as the search left it.

    Args:
        decay: `d`, 0 or more and below 1; the average reaches about `1 / (1 - d)` steps back.
        weight: share `w` of the teacher, above 0 and at most 1.
        temperature: `T`, above 0.

    Raises:
        ProbqError: if an option is not in its range.

    Source: A. Tarvainen, H. Valpola, 2017, "Mean Teachers are Better Role Models".

    Example:
        >>> teacher = itself(decay=0.99)
    """
    return Itself(decay, weight=weight, temperature=temperature)


@dataclass(frozen=True)
class Itself(Teacher):
    """This is the teacher of `itself`."""

    decay: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_real(self.decay) or not 0 <= self.decay < 1:
            raise ProbqError(f"decay is the share of the old average, 0 to below 1, not {self.decay!r}")

    def begin(self, q: Program) -> Lessons:
        """Return the lessons of a fit."""
        return LessonsOfItself(q, self)


class LessonsOfItself(Lessons):
    """These are the lessons of a network's own average.

    Args:
        q: the network.
        teacher: the options.
    """

    def __init__(self, q: Program, teacher: Itself) -> None:
        super().__init__(q, teacher.weight, teacher.temperature)
        self.decay = teacher.decay
        self.net = copy.deepcopy(q.net).eval().requires_grad_(False)

    @torch.no_grad()
    def outputs(self, x: Any, learning: bool) -> Any:
        """Return what the average says."""
        with running(x):
            return substitute(self.net, {}, {}, {}, *arguments(x))

    @torch.no_grad()
    def move(self) -> None:
        """Move the average to the network's parameters, and take its statistics."""
        for average, now in zip(self.net.parameters(), self.q.net.parameters(), strict=True):
            average.lerp_(now, 1 - self.decay)
        for statistic, value in zip(self.net.buffers(), self.q.net.buffers(), strict=True):
            statistic.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return {name: tensor for name, tensor in self.net.state_dict().items() if isinstance(tensor, torch.Tensor)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self.net.load_state_dict(state_dict, strict=False)
