"""A teacher that was trained before stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from probq.network.program.program import Program
from probq.network.program.substitution import running
from probq.network.tracing.arguments import own_copy
from probq.training.distillation.lessons import Lessons, Teacher
from probq.utils.errors import ProbqError
from probq.utils.random_stream import exclusive
from probq.utils.structures.tensors import arguments, call


def offline(net: Callable[..., Any], weight: float = 0.5, temperature: float = 2.0) -> Teacher:
    """Return a teacher that was trained before: `p(y | x)` of its outputs, in evaluation mode, never changes.

    `fit(..., teacher=net)` means `offline(net)`.

    Args:
        net: a network, or a function, of the inputs of the network that is fitted, with outputs for the same
            likelihood. Its tensors are on the same device. A `Quantized` teaches at its mode.
        weight: share `w` of the teacher, above 0 and at most 1.
        temperature: `T`, above 0.

    Raises:
        ProbqError: if an option is not in its range; in a fit, if the teacher's outputs do not fit.

    Source: G. Hinton, O. Vinyals, J. Dean, 2015, "Distilling the Knowledge in a Neural Network"; for networks of few
    bits A. Mishra, D. Marr, 2018, "Apprentice: Using Knowledge Distillation Techniques to Improve Low-Precision Network
    Accuracy".

    Example:
        >>> import probq
        >>> x, y = torch.randn(8, 3), torch.arange(8) % 2
        >>> net = torch.nn.Linear(3, 2)
        >>> teacher = offline(net, weight=0.7)
        >>> history = probq.fit(probq.quantize(net, x), [(x, y)], epochs=2, teacher=teacher, progress=False)
        >>> len(history.steps)
        2
    """
    return Offline(net, weight=weight, temperature=temperature)


def as_teacher(teacher: Any) -> Teacher | None:
    """Return a teacher; a network by itself teaches offline.

    Raises:
        ProbqError: if it is neither, nor None.
    """
    if isinstance(teacher, nn.Module):
        return offline(teacher)
    if teacher is None or isinstance(teacher, Teacher):
        return teacher
    raise ProbqError(
        "teacher is a network that was trained, or one of probq.distillation, such as "
        f"probq.distillation.offline(net, weight=0.5), not {teacher!r:.80}"
    )


@dataclass(frozen=True)
class Offline(Teacher):
    """This is the teacher of `offline`."""

    net: Callable[..., Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.net):
            raise ProbqError(f"offline takes a network or a function of its inputs, not {self.net!r:.80}")

    def begin(self, q: Program) -> Lessons:
        """Return the lessons of a fit."""
        return OfflineLessons(q, self)


class OfflineLessons(Lessons):
    """These are the lessons of a network that stays as it is.

    Args:
        q: the network that learns.
        teacher: the options.

    Raises:
        ProbqError: if the teacher is on another device.
    """

    def __init__(self, q: Program, teacher: Offline) -> None:
        super().__init__(q, teacher.weight, teacher.temperature)
        self.net = teacher.net
        parameter = next(self.net.parameters(), None) if isinstance(self.net, nn.Module) else None
        if parameter is not None and parameter.device != q.device:
            raise ProbqError(
                f"the teacher is on {parameter.device} and the network on {q.device}; move it, teacher.to({q.device})"
            )

    @torch.no_grad()
    def outputs(self, x: Any, learning: bool) -> Any:
        """Return what the teacher says in evaluation mode; its modes are as before afterwards."""
        modules = list(self.net.modules()) if isinstance(self.net, nn.Module) else []
        with exclusive():
            training = [module for module in modules if module.training]
            for module in training:
                module.training = False
            try:
                with running(x):
                    return call(self.net, own_copy(arguments(x)))
            finally:
                for module in training:
                    module.training = True
