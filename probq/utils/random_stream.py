"""A call has random numbers of its own, although torch and Pyro keep theirs for the whole process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

# What torch and Pyro keep once for the whole process has one lock for the whole process; it holds no state of ours.
_PROCESS = threading.RLock()


@contextmanager
def exclusive() -> Iterator[None]:
    """Keep other threads out within the context, also from a `Stream` and from a step of a fit.

    Calling a network with other weights changes the network for the time of the call, and `torch.export` keeps a stack
    of its own for the whole process.
    """
    with _PROCESS:
        yield


class Stream:
    """A stream draws random numbers that a seed decides; without a seed, those of torch's global random state.

    Args:
        seed: 0 or more, or None.
    """

    def __init__(self, seed: int | None) -> None:
        self.seed = seed
        self._state: Tensor | None = None

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Make torch's global random state on the CPU this stream's within the context, and keep other threads out.

        Afterwards it is what it was. Pyro's stack of handlers is the caller's alone too.
        """
        with _PROCESS:
            if self.seed is None:
                yield
                return
            before = torch.get_rng_state()
            if self._state is None:
                torch.manual_seed(self.seed)
            else:
                torch.set_rng_state(self._state)
            try:
                yield
            finally:
                self._state = torch.get_rng_state()
                torch.set_rng_state(before)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Do as `drawing` within the context, with gradients on."""
        with self.drawing(), torch.inference_mode(False), torch.enable_grad():
            yield


class StreamIterator(Iterator[T], Generic[T]):
    """Each item of this iterator is made with random numbers of its own, and with gradients on.

    Args:
        items: a generator that may be suspended for as long as its user likes.
        stream: its random numbers.
    """

    def __init__(self, items: Iterator[T], stream: Stream) -> None:
        self._items, self.stream = items, stream

    def __next__(self) -> T:
        with self.stream.training():
            return next(self._items)

    def close(self) -> None:
        """End the generator where it stands."""
        with self.stream.training():
            self._items.close()  # type: ignore[attr-defined]
