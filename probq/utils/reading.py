"""Batches are read pass after pass, from a place that can be found again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from probq.utils.batches import Batches
from probq.utils.errors import ProbqError
from probq.utils.random_states import random_states, set_random_states


class Reading(Iterator[tuple[Any, Tensor]]):
    """A reading gives batches without an end, and knows its place.

    That is the random states that its pass began with, and how many batches it took since.

    Args:
        data: the batches.
        apart: context of what draws random numbers that are not those of other processes.
    """

    def __init__(self, data: Batches, apart: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.data, self.apart, self.taken = data, apart, 0
        self._pass: Iterator[tuple[Any, Tensor]] | None = None
        self._began: Mapping[str, Any] | None = None  # None also for lists, whose order no random number decides
        self._left = False  # whether the place is one of another process, where this one is not yet

    def __next__(self) -> tuple[Any, Tensor]:
        if self._left:
            self._find_place()
        while True:
            if self._pass is None:
                ordered = isinstance(self.data.source, list | tuple)
                self._began = None if ordered else random_states(self.data.source)
            with self.apart():
                if self._pass is None:
                    self._pass, self.taken = self.data.read(), 0
                batch = next(self._pass, None)
            if batch is not None:
                self.taken += 1
                return batch
            if not self.taken:
                raise ProbqError(
                    f"the {self.data.name} gave no batch when it was read again; give a list or a DataLoader"
                )
            self._pass = None

    def state_dict(self) -> dict[str, Any]:
        """Return the place."""
        began = self._began if self._pass is not None or self._left else None
        return {"began": began, "taken": self.taken if self._pass is not None or self._left else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a place, with the next batch that is asked for."""
        self._pass, self._began = None, state["began"]
        self.taken, self._left = state["taken"] or 0, state["taken"] is not None

    def _find_place(self) -> None:
        """Read the present pass again up to the place, with the random numbers that it began with."""
        source = self.data.source
        now = random_states(source)
        if self._began is not None:
            set_random_states(self._began, source)
        with self.apart():
            self._pass, self._left = self.data.read(self.taken), False
        set_random_states(now, source)
