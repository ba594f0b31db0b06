"""A teacher says which lessons a fit takes; a lesson is what it says to one batch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from probq.likelihoods.classes import observed
from probq.likelihoods.per_output import OutputLaws
from probq.network.distributions.observation import Observation
from probq.network.program.program import Program
from probq.training.distillation.tempered import tempered_divergence
from probq.utils.arguments import is_real
from probq.utils.errors import ProbqError

Number = TypeVar("Number", Tensor, float)


class Lesson(NamedTuple):
    """A lesson is the teacher's law of the targets of one batch.

    Attributes:
        law: given the teacher's outputs, without gradients.
        weight: `w`, the share of the lesson.
        temperature: `T`.
    """

    law: Distribution
    weight: float
    temperature: float

    def divergence(self, law: Distribution, y: Tensor) -> Tensor:
        """Return `T^2 KL(teacher || network)` of each example in nats, `[batch]`; targets that are ignored count none.

        Args:
            law: of the targets given the network's outputs.
            y: targets.
        """
        return divergence(self.law, law, y, self.temperature)

    def mixed(self, nll: Number, divergence: Number) -> Number:
        """Return `(1 - w) nll + w divergence`."""
        return (1 - self.weight) * nll + self.weight * divergence


def divergence(teacher: Distribution, law: Distribution, y: Tensor, temperature: float) -> Tensor:
    """Return `T^2 KL(teacher || law)` of each example in nats, `[batch]`; targets that are ignored count none.

    That of several outputs is the sum of theirs.
    """
    if isinstance(law, OutputLaws) and isinstance(teacher, OutputLaws):
        targets = Observation(law).shaped(y)
        parts = ((teacher.laws[name], own, targets[name]) for name, own in law.laws.items())
        return torch.stack([divergence(other, own, target, temperature) for other, own, target in parts]).sum(0)
    each = tempered_divergence(teacher, law, temperature) * temperature**2
    seen = observed(law, Observation(law).shaped(y))
    each = each if bool(seen.all()) else each * seen
    return each.reshape(len(each), -1).sum(-1)


class Lessons(ABC):
    """These are the lessons of one fit.

    Args:
        q: the network that learns.
        weight: `w`.
        temperature: `T`.

    Attributes:
        moved: parameters of a teacher that learns, whose gradients are averaged where several processes fit together.
        statistics: of its normalisation.
    """

    def __init__(self, q: Program, weight: float, temperature: float) -> None:
        self.q, self.weight, self.temperature = q, weight, temperature
        self.moved: Sequence[Tensor] = ()
        self.statistics: Sequence[Tensor] = ()

    def lesson(self, x: Any, learning: bool = True) -> Lesson:
        """Return what the teacher says to a batch of inputs.

        Args:
            x: a batch of inputs, or a tuple of the network's arguments.
            learning: whether `study` and `move` follow; in trials a teacher stays as it is.
        """
        return Lesson(self.q.law(self.outputs(x, learning)), self.weight, self.temperature)

    @abstractmethod
    def outputs(self, x: Any, learning: bool) -> Any:
        """Return the teacher's outputs for a batch of inputs, without gradients; see `lesson`."""

    def study(self, law: Distribution, y: Tensor, share: float) -> None:
        """Let the teacher take in what the network said to the batch of the last lesson.

        Args:
            law: of the targets given the network's outputs.
            y: targets.
            share: of the step's examples that the batch has.
        """
        return

    def move(self) -> None:
        """Move the teacher, after the network was moved in a step."""
        return

    def state_dict(self) -> dict[str, Any]:
        """Return what later lessons depend on: numbers, text, tensors and containers of them, for a checkpoint."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        return


@dataclass(frozen=True, kw_only=True)
class Teacher(ABC):
    """A teacher has its options as a frozen dataclass; `begin` is called once, when a fit starts.

    Attributes:
        weight: share `w` of the teacher, above 0 and at most 1.
        temperature: `T`, above 0.

    Raises:
        ProbqError: if one is not in its range.
    """

    weight: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not is_real(self.weight) or not 0 < self.weight <= 1:
            raise ProbqError(f"weight is the share of the teacher, above 0 and at most 1, not {self.weight!r}")
        if not is_real(self.temperature) or not 0 < self.temperature < math.inf:
            raise ProbqError(f"temperature divides logits, a number above 0, not {self.temperature!r}")

    @abstractmethod
    def begin(self, q: Program) -> Lessons:
        """Return the lessons of a fit of a network."""
