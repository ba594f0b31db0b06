"""Each process has its part of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.data import DistributedSampler

from probq.utils.batches import Batches


class PartOfBatches(Batches):
    """These are the batches of one process; `size` is the number of examples of all processes.

    The order of a `DistributedSampler` is drawn with the fit's random numbers, anew for each pass.

    Args:
        batches: a loader that Fabric has set up, or any other data of this process's own.
        device: where the tensors are moved.
        name: the name of the data, for messages.
        alike: context in which all processes draw the same numbers.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        device: torch.device,
        name: str,
        alike: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.alike = alike
        super().__init__(getattr(batches, "_dataloader", batches), device, name)  # Fabric's wrapper counts passes alone
        self.of_all: int | None = None

    @property
    def is_shared_out(self) -> bool:
        """Return whether every process has some of the same examples, so that each counts all of them."""
        return any(isinstance(sampler, DistributedSampler) for sampler in self._samplers())

    @property
    def size(self) -> int:
        """Return the number of examples of all processes."""
        return super().size if self.of_all is None else self.of_all

    def _samplers(self) -> list[Any]:
        own = getattr(self.source, "sampler", None)
        return [own, getattr(getattr(self.source, "batch_sampler", None), "sampler", None)]

    def _opened(self) -> Iterator[Any]:
        samplers = {id(s): s for s in self._samplers() if hasattr(s, "set_epoch")}
        if samplers:
            with self.alike():
                epoch = int(torch.randint(2**31, ()))
            for sampler in samplers.values():
                sampler.set_epoch(epoch)
        return super()._opened()
