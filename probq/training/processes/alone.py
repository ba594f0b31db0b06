"""A fit runs in one process, unless it is given Fabric; this is what it asks of its processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from probq.network.quantized.quantized import Quantized
from probq.utils.batches import Batches

T = TypeVar("T")


class StepMeans(NamedTuple):
    """These are means over the examples of one step, in nats, and the number of these examples.

    Attributes:
        loss: negative ELBO and the budget's term.
        nll: negative log-likelihood.
        kl: temperature times all divergences.
        taught: divergence from a teacher.
        examples: their number.
        odd: rank of a process whose loss is not finite, if any is.
    """

    loss: float
    nll: float
    kl: float
    taught: float
    examples: int
    odd: int | None = None


class Processes:
    """This is one process alone, which shares nothing: every method gives back what it is given.

    Attributes:
        count: number of processes.
        rank: number of this one.
    """

    count, rank = 1, 0

    @property
    def is_first(self) -> bool:
        """Return whether this is the process that writes files and shows bars."""
        return self.rank == 0

    def take(self, q: Quantized) -> None:
        """Move a network to where this process computes."""
        return

    def batches(self, batches: Iterable[Any], device: torch.device, name: str) -> Batches:
        """Return this process's part of the data."""
        return batches if isinstance(batches, Batches) else Batches(batches, device, name)

    def seed(self, seed: int | None) -> int | None:
        """Return a seed that all processes have, or None where the global random state decides."""
        return seed

    def apart(self) -> AbstractContextManager[None]:
        """Draw random numbers of this process's own within the context; outside, all draw the same."""
        return nullcontext()

    def alike(self) -> AbstractContextManager[None]:
        """Draw the same random numbers in all processes within the context, also inside of `apart`."""
        return nullcontext()

    def precision(self) -> AbstractContextManager[Any]:
        """Compute the network within the context in the precision that Fabric is given."""
        return nullcontext()

    def together(self, work: Callable[[], T]) -> T:
        """Do work that each process does alone; what one raises ends it in all of them."""
        return work()

    def first(self, work: Callable[[], T]) -> T:
        """Return what the first process makes of some work, or raise what it raises."""
        return work()

    def agree(self, value: T) -> T:
        """Return the first process's value."""
        return value

    def align(self, q: Quantized) -> None:
        """Give the networks of all processes the state of the first one's, and the same random state."""
        return

    def exchange(self, means: StepMeans, moved: Sequence[Tensor], statistics: Sequence[Tensor]) -> StepMeans:
        """Make gradients and means those of the examples of all processes.

        Args:
            means: of this process.
            moved: what gradients move.
            statistics: what a step moves besides, which becomes that of the first process.
        """
        return means

    def stop(self, error: Exception, moved: Sequence[Tensor], statistics: Sequence[Tensor]) -> None:
        """Tell the others, who wait for what `exchange` would have given them, that this process stops."""
        return
