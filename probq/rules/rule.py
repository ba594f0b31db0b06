"""All rules have this in common: the limit in force at each step, and a term of the loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from probq.network.program.program import Program
from probq.utils.errors import ProbqError


class State(ABC):
    """A limit's ramp runs geometrically from the starting cost to the limit during one search:

        limit_at(k) = max(start, limit)^(1 - d) limit^d,    d = min(1, (k + 1) / ramp).

    A tight limit from the start would collapse a network with a 0-bit rung.

    Args:
        start: cost before training.
        limit: the limit to reach, in the same unit.
        ramp: number of steps until the full limit holds.

    Attributes:
        multiplier: weight of the gap in the loss, 0 or more; what the history records.
    """

    def __init__(self, start: float, limit: float, ramp: int) -> None:
        self.start, self.limit, self.ramp = start, limit, ramp
        self.multiplier = 0.0

    def limit_at(self, step: int) -> float:
        """Return the limit in force at a step."""
        done = min(1.0, (step + 1) / max(self.ramp, 1))
        return float(max(self.start, self.limit) ** (1 - done) * self.limit**done)

    @abstractmethod
    def term(self, gap: Tensor, step: int) -> Tensor:
        """Return what the loss gains at a step, a scalar; called once a step, it moves the multiplier.

        Args:
            gap: how far the limit in force is exceeded, a scalar with gradients: `log(E[cost] / limit_at(step))`, or
                its like for a chance constraint. The limit is kept where it is 0 or less.
            step: counted from 0.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: all attributes but the rule; numbers, text, tensors and containers."""
        return {name: value for name, value in vars(self).items() if not isinstance(value, Rule)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        vars(self).update(state_dict)


class Mover(ABC):
    """A mover moves the gates in the optimizer's stead, after each backward pass."""

    @abstractmethod
    def move(self, exceeded: bool, step: int) -> None:
        """Move every gate.

        Args:
            exceeded: whether any limit in force is exceeded.
            step: counted from 0.
        """

    def close(self) -> None:
        """End the moves; this is called once, when the search has ended."""
        return

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: numbers, text, tensors and containers of them that later moves depend on."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        return


class Rule(ABC):
    """A rule has its options as a frozen dataclass.

    `begin` is called for each limit at the start of a search.
    """

    @abstractmethod
    def begin(self, start: float, limit: float, steps: int) -> State:
        """Return the state of one limit.

        Args:
            start: cost before training.
            limit: the limit to reach.
            steps: length of the search.
        """

    def mover(self, q: Program, steps: int) -> Mover | None:
        """Return what moves the gates of a network in a search, or None to leave them to the loss and its optimizer."""
        return None


def augmented(gap: Tensor, multiplier: float, penalty: float) -> Tensor:
    """Return the augmented Lagrangian's term of an inequality `gap <= 0`, `(max(0, m + c g)^2 - m^2) / (2 c)`."""
    return ((multiplier + penalty * gap).clamp_min(0) ** 2 - multiplier**2) / (2 * penalty)


def ramp_steps(ramp: float, steps: int) -> int:
    """Return the number of steps until the full limit holds: a share of the search, rounded down."""
    return max(1, int(ramp * steps))


def check_share(name: str, value: Any) -> None:
    """Raise unless an option is a share of the search."""
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ProbqError(f"{name} is a share of the search, 0 to 1, not {value!r}")


def check_positive(name: str, value: Any, zero: bool = False) -> None:
    """Raise unless an option is a finite number above 0 (or 0, where `zero` allows it)."""
    good = isinstance(value, int | float) and math.isfinite(value) and (value > 0 or (zero and value == 0))
    if not good:
        raise ProbqError(f"{name} is a number {'of 0 or more' if zero else 'above 0'}, not {value!r}")
