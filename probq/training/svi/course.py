"""The course of a fit says where it stands, and what it takes to go on from there in another process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeAlias

from probq.network.program.originals import Originals
from probq.network.quantized.network_state import network_state, restore_network
from probq.network.quantized.quantized import Quantized
from probq.utils.random_states import random_states, set_random_states
from probq.utils.reading import Reading

PHASES = ("search", "decide", "trial", "tune", "finished")


class Stateful(Protocol):
    """A part has a state that can be told and taken again, as optimizers and schedules of torch have."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take a state."""


Parts: TypeAlias = Mapping[str, Stateful]


class Course:
    """A course follows a fit through its phases.

    Args:
        sources: of the batches, whose generators belong to the random states.

    Attributes:
        phase: one of `PHASES`.
        numbers: of the steps of this phase.
        next: number of the next step.
        resumed: whether the fit went on in this phase, instead of entering it anew.
        pause: called where a phase has no steps, between two of its measurements.
        averaged: gives the network the averages of its parameters within a context, where a phase keeps any.
        lasting: what has a state in all phases, by name; known before the fit begins.
    """

    def __init__(self, sources: Sequence[Any]) -> None:
        self.sources = tuple(sources)
        self.phase, self.numbers, self.next = PHASES[0], range(0), 0
        self.resumed = False
        self.pause: Callable[[], None] = lambda: None
        self.averaged: Callable[[], AbstractContextManager[None]] = nullcontext
        self.lasting: Parts = {}
        self._parts: Parts = {}
        self._random: Mapping[str, Any] | None = None
        self._from: Mapping[str, Any] | None = None
        self._unused = random_states()
        self._q: Quantized | None = None
        self._reading: Reading | None = None

    def resume(self, state: Mapping[str, Any]) -> None:
        """Let a fit that has not begun go on from the state of another one."""
        self._from = state
        for name in ("numpy", "python"):
            if name in state["random"]:
                self._unused.pop(name)

    def skip_to_end(self) -> None:
        """Let a fit that goes on take no more steps."""
        if self._from is not None:
            self._from = {**self._from, "phase": "finished", "parts": {}}

    def begin(self, q: Quantized, reading: Reading) -> None:
        """Follow a network and the reading of its batches, both of which take the state that the fit goes on from."""
        self._q, self._reading = q, reading
        if self._from is None:
            q.originals = Originals()  # what is trained from here on is the float network
        else:
            restore_network(q, self._from["network"])
            reading.load_state_dict(self._from["reading"])
            for name, part in self.lasting.items():
                part.load_state_dict(self._from["lasting"][name])

    def past(self, phase: str) -> bool:
        """Return whether the fit goes on behind a phase."""
        return self._from is not None and PHASES.index(self._from["phase"]) > PHASES.index(phase)

    def numbers_of(self, phase: str, otherwise: range) -> range:
        """Return the numbers of the steps of a phase if the fit goes on in it, else others."""
        here = self._from is not None and self._from["phase"] == phase
        return range(*self._from["numbers"]) if here and self._from is not None else otherwise

    def kept(self, phase: str) -> Mapping[str, Any] | None:
        """Return the state of the parts of a phase if the fit goes on in it, else None."""
        return self._from["parts"] if self._from is not None and self._from["phase"] == phase else None

    def enter(self, phase: str, numbers: range, parts: Parts, idle: bool = False) -> range:
        """Enter a phase, in its middle where the fit goes on there.

        Args:
            phase: its name.
            numbers: of its steps.
            parts: what it moves, by name.
            idle: whether it draws no random numbers but at its beginning, and begins anew where the fit goes on.

        Returns:
            The numbers of the steps that are left.
        """
        self.phase, self.numbers, self.next = phase, numbers, numbers.start
        self._parts = parts
        state, self._from = self._from, None
        self.resumed = state is not None
        if state is not None:
            for name, part in self._parts.items():
                part.load_state_dict(state["parts"][name])
            self.next = state["next"]
            set_random_states(state["random"], *self.sources)
        self._random = self._random_states() if idle else None
        return range(self.next, numbers.stop)

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the fit depends on; its tensors are the very ones, which move on."""
        assert self._q is not None
        assert self._reading is not None
        return {
            "phase": self.phase,
            "numbers": [self.numbers.start, self.numbers.stop],
            "next": self.next,
            "random": self._random or self._random_states(),
            "network": network_state(self._q),
            "reading": self._reading.state_dict(),
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "lasting": {name: part.state_dict() for name, part in self.lasting.items()},
        }

    def _random_states(self) -> Mapping[str, Any]:
        """Return the random states; those of NumPy and Python only if they moved, so that none is set for nothing."""
        states = random_states(*self.sources)
        return {
            name: value
            for name, value in states.items()
            if name not in self._unused or _moved(name, self._unused, states)
        }


def _moved(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return name not in ("numpy", "python") or bool(before[name] != now[name])
