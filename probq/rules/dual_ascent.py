"""Dual ascent on an augmented Lagrangian, its limit ramped down, is the default rule."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from probq.rules.rule import Rule, State, augmented, check_positive, check_share, ramp_steps


@dataclass(frozen=True)
class DualAscent(Rule):
    """This rule adds `(max(0, m + c g)^2 - m^2) / (2 c)` to the loss.

    Here `g` is the gap to the limit in force, `m` the multiplier and `c` the penalty.

    So the gap weighs `max(0, m + c g)`: more while the limit is exceeded, and less, down to nothing, as soon as it is
    kept, long before the multiplier has come down. Without that the gates run on past the limit, and are slow to come
    back. After each step the multiplier rises by `rate * g`, never below 0.

    Args:
        ramp: share of the search over which the limit comes down to its full force.
        rate: step size of the multiplier; by default `min(0.1, 20 / steps)`.
        penalty: `c`.

    Raises:
        ProbqError: if an option is not in its range.

    Source: D. P. Bertsekas, 1982, "Constrained Optimization and Lagrange Multiplier Methods" (the term for an
    inequality is R. T. Rockafellar's, 1974).
    """

    ramp: float = 0.5
    rate: float | None = None
    penalty: float = 4.0

    def __post_init__(self) -> None:
        check_share("ramp", self.ramp)
        check_positive("penalty", self.penalty)
        if self.rate is not None:
            check_positive("rate", self.rate)

    def begin(self, start: float, limit: float, steps: int) -> DualAscentState:
        """Return the state of one limit."""
        rate = min(0.1, 20 / steps) if self.rate is None else self.rate
        return DualAscentState(start, limit, ramp_steps(self.ramp, steps), rate, self.penalty)


class DualAscentState(State):
    """This is the state of `DualAscent`; `rate` and `penalty` are as there, the rest is as in `State`."""

    def __init__(self, start: float, limit: float, ramp: int, rate: float, penalty: float) -> None:
        super().__init__(start, limit, ramp)
        self.rate, self.penalty = rate, penalty

    def term(self, gap: Tensor, step: int) -> Tensor:
        """Return what the loss gains."""
        loss = augmented(gap, self.multiplier, self.penalty)
        self.multiplier = max(0.0, self.multiplier + self.rate * float(gap.detach()))
        return loss
