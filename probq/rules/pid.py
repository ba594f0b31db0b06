"""A PID controller moves the multiplier."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from probq.rules.rule import Rule, State, check_positive, check_share, ramp_steps


@dataclass(frozen=True)
class PID(Rule):
    """This rule adds `m g` to the loss, with gap `g` and a multiplier `m` that a PID controller sets,

        I <- max(0, I + ki g),    m = max(0, kp g' + I + kd max(0, g' - g'_before)),

    where `g'` is a moving average of the gap. Its proportional part damps the oscillation of plain dual ascent, its
    derivative part brakes before the limit is passed.

    Args:
        kp: gain of the proportional part.
        ki: gain of the integral part; by default `min(0.1, 20 / steps)`.
        kd: gain of the derivative part.
        smooth: share of the old value in the moving average, 0 for none.
        delay: number of steps between the two values of the derivative.
        ramp: share of the search over which the limit comes down to its full force.

    Raises:
        ProbqError: if an option is not in its range.

    Source: A. Stooke, J. Achiam, P. Abbeel, 2020, "Responsive Safety in Reinforcement Learning by PID Lagrangian
    Methods". Their gap is a difference of costs; here it is a logarithm of their ratio.
    """

    kp: float = 1.0
    ki: float | None = None
    kd: float = 1.0
    smooth: float = 0.5
    delay: int = 5
    ramp: float = 0.5

    def __post_init__(self) -> None:
        check_positive("kp", self.kp, zero=True)
        check_positive("kd", self.kd, zero=True)
        check_positive("delay", self.delay)
        check_share("smooth", self.smooth)
        check_share("ramp", self.ramp)
        if self.ki is not None:
            check_positive("ki", self.ki)

    def begin(self, start: float, limit: float, steps: int) -> PIDState:
        """Return the state of one limit."""
        ki = min(0.1, 20 / steps) if self.ki is None else self.ki
        return PIDState(self, start, limit, ramp_steps(self.ramp, steps), ki)


class PIDState(State):
    """This is the state of `PID`.

    Args:
        rule: its options.
        start: as in `State`.
        limit: as in `State`.
        ramp: as in `State`.
        ki: gain of the integral part.
    """

    def __init__(self, rule: PID, start: float, limit: float, ramp: int, ki: float) -> None:
        super().__init__(start, limit, ramp)
        self.rule, self.ki, self.integral = rule, ki, 0.0
        self.smoothed: tuple[float, ...] = ()

    def term(self, gap: Tensor, step: int) -> Tensor:
        """Return what the loss gains."""
        now = float(gap.detach())
        kept = self.rule.smooth if self.smoothed else 0.0
        last = self.smoothed[-1] if self.smoothed else 0.0
        self.smoothed = (*self.smoothed, kept * last + (1 - kept) * now)[-self.rule.delay - 1 :]
        self.integral = max(0.0, self.integral + self.ki * now)
        rise = max(0.0, self.smoothed[-1] - self.smoothed[0])
        self.multiplier = max(0.0, self.rule.kp * self.smoothed[-1] + self.integral + self.rule.kd * rise)
        return self.multiplier * gap
