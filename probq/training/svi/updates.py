"""Gradients move parameters in steps of an optimizer, which updates describe and a descent makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

from probq.network.quantized.quantized import Quantized
from probq.training.svi.averages import Averages
from probq.training.svi.course import Parts
from probq.training.svi.learning_rates import Rates, make_schedule, parameter_groups
from probq.utils.arguments import is_real
from probq.utils.errors import ProbqError

Clip: TypeAlias = float | Callable[[Iterable[Tensor]], Any]


@dataclass(frozen=True)
class Updates:
    """Updates say how gradients move the parameters of a network.

    Args:
        optimizer: makes an optimizer of parameter groups.
        rates: learning rates and their schedules.
        clip: greatest norm of the gradient, or a function that changes the gradients of parameters; None leaves them.
        average: decay of the parameters' average, which stands in their place at the end of a phase; None: none.

    Raises:
        ProbqError: if one is not what it should be.
    """

    optimizer: Callable[..., Optimizer]
    rates: Rates
    clip: Clip | None = None
    average: float | None = None

    def __post_init__(self) -> None:
        clip, average = self.clip, self.average
        if clip is not None and not callable(clip) and not (is_real(clip) and clip > 0):
            raise ProbqError(
                "clip is the greatest norm of a gradient, above 0, or a function of parameters such as "
                f"functools.partial(torch.nn.utils.clip_grad_value_, clip_value=1.0), not {clip!r:.80}"
            )
        if average is not None and not (is_real(average) and 0 <= average < 1):
            raise ProbqError(f"average is the decay of an average of parameters, 0 to below 1, not {average!r:.80}")

    def check(self, q: Quantized, steps: int) -> None:
        """Raise unless the schedules can be made."""
        optimizer = self.optimizer(parameter_groups(q, self.rates, None))
        for schedule in (self.rates.schedule, self.rates.search_schedule):
            if schedule is not None:
                make_schedule(schedule, optimizer, steps)

    def search(self, q: Quantized, steps: int, cosine: bool) -> Descent:
        """Return the descent of a search, its rates constant or with a cosine, unless they have a schedule."""
        optimizer, schedule = self.optimizer(parameter_groups(q, self.rates, steps)), self.rates.search_schedule
        if schedule is not None:
            return self._descent(optimizer, make_schedule(schedule, optimizer, steps))
        return self._descent(optimizer, CosineAnnealingLR(optimizer, steps) if cosine else None)

    def tuning(self, q: Quantized, steps: int) -> Descent:
        """Return the descent at fixed widths."""
        optimizer = self.optimizer(parameter_groups(q, self.rates, None))
        return self._descent(optimizer, make_schedule(self.rates.schedule or CosineAnnealingLR, optimizer, steps))

    def _descent(self, optimizer: Optimizer, schedule: LRScheduler | None) -> Descent:
        averages = None if self.average is None else Averages(_parameters(optimizer), self.average)
        return Descent(optimizer, schedule, self.clip, averages)


class Descent:
    """A descent moves parameters in the steps of one phase.

    Args:
        optimizer: of the parameters.
        schedule: of its rates, or None.
        clip: as in `Updates`.
        averages: of the parameters, or None.
    """

    def __init__(
        self, optimizer: Optimizer, schedule: LRScheduler | None, clip: Clip | None, averages: Averages | None
    ) -> None:
        self.optimizer, self.schedule, self.clip, self.averages = optimizer, schedule, clip, averages
        self.ended = False

    @property
    def parts(self) -> Parts:
        """Return what a checkpoint keeps of it."""
        named = {"optimizer": self.optimizer, "schedule": self.schedule, "averages": self.averages}
        return {name: part for name, part in named.items() if part is not None}

    def clear(self) -> None:
        """Set all gradients to none."""
        self.optimizer.zero_grad(set_to_none=True)

    def move(self) -> None:
        """Move the parameters by their gradients, which are clipped first."""
        if callable(self.clip):
            self.clip(_parameters(self.optimizer))
        elif self.clip is not None:
            nn.utils.clip_grad_norm_(_parameters(self.optimizer), self.clip)
        self.optimizer.step()

    def moved(self) -> list[Tensor]:
        """Return the parameters that have a gradient."""
        return [p.detach() for p in _parameters(self.optimizer) if p.grad is not None]

    def go_on(self, loss: float) -> None:
        """Move averages and rates on, after a step with a loss."""
        if self.averages is not None:
            self.averages.move()
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(loss)
        elif self.schedule is not None:
            self.schedule.step()

    def end(self) -> None:
        """Leave the parameters at their averages, if there are any."""
        if self.averages is not None and not self.ended:
            self.averages.take()
        self.ended = True

    def averaged(self) -> AbstractContextManager[None]:
        """Give the parameters the values of their averages within the context, if there are any."""
        return nullcontext() if self.averages is None or self.ended else self.averages.taken()


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
