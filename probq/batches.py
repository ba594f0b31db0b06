"""Reading the user's data: any iterable of `(input, target)`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor

from probq.errors import ProbqError


class Batches:
    """Batches that can be read again and again, their number and the number of examples.

    Args:
        batches: any iterable of `(input, target)`, usually a `DataLoader`; one that can be read only once, or has no
            length, is kept in memory.
        device: where the tensors are moved.

    Raises:
        ProbqError: if there is no batch.
    """

    def __init__(self, batches: Iterable[Any], device: torch.device) -> None:
        if not isinstance(batches, Iterable):
            raise ProbqError(
                f"batches is an iterable of (input, target), such as a DataLoader, not {type(batches).__name__}"
            )
        if isinstance(batches, Iterator) or not isinstance(batches, Sized):
            batches = list(batches)
        self.source: Any = batches
        self.device = device
        if len(self.source) == 0:
            raise ProbqError(
                "the data holds no batch; is the data set empty, or smaller than one batch with drop_last?"
            )

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        for number, batch in enumerate(self.source):
            yield self._checked(batch, number)

    @property
    def size(self) -> int:
        """Number of examples; that of batches times the first one's where only a full pass could tell."""
        data = getattr(self.source, "dataset", None)
        if isinstance(data, Sized):
            return len(data)
        if isinstance(self.source, list | tuple):
            return sum(int(batch[1].shape[0]) for batch in self)
        return len(self) * int(next(iter(self))[1].shape[0])

    def _checked(self, batch: Any, number: int) -> tuple[Any, Tensor]:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[1], Tensor):
            raise ProbqError(f"batch {number} of the data is not an (input, target) pair with a tensor as target")
        x = tuple(batch[0]) if isinstance(batch[0], tuple | list) else (batch[0],)
        for tensor in (*x, batch[1]):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
                raise ProbqError(f"batch {number} of the data holds a value that is not finite; clean the data first")
        moved = tuple(a.to(self.device) if isinstance(a, Tensor) else a for a in x)
        return (moved if isinstance(batch[0], tuple | list) else moved[0]), batch[1].to(self.device)
