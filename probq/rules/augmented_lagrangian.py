"""The method of multipliers takes rounds of steps with a fixed multiplier, then one large step of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from probq.rules.rule import Rule, State, augmented, check_positive, check_share, ramp_steps


@dataclass(frozen=True)
class AugmentedLagrangian(Rule):
    """This rule adds `(max(0, m + r g)^2 - m^2) / (2 r)` to the loss, with gap `g`, multiplier `m` and penalty `r`.

    The search is cut into rounds. At the end of one, with the round's mean gap `G`, the multiplier becomes
    `max(0, m + r G)`; where `G` is above 0 and did not shrink to a half of the last round's, the penalty is multiplied
    by `growth`, up to `most`.

    Args:
        rounds: number of rounds in a search.
        penalty: the first penalty.
        growth: factor of the penalty.
        most: largest penalty.
        ramp: share of the search over which the limit comes down to its full force.

    Raises:
        ProbqError: if an option is not in its range.

    Source: R. T. Rockafellar, 1974, "Augmented Lagrange Multiplier Functions and Duality in Nonconvex Programming";
    J. Nocedal, S. J. Wright, 2006, "Numerical Optimization" (the schedule of the penalty).
    """

    rounds: int = 25
    penalty: float = 1.0
    growth: float = 1.2
    most: float = 3.0
    ramp: float = 0.5

    def __post_init__(self) -> None:
        for name in ("rounds", "penalty", "growth", "most"):
            check_positive(name, getattr(self, name))
        check_share("ramp", self.ramp)

    def begin(self, start: float, limit: float, steps: int) -> MultiplierState:
        """Return the state of one limit."""
        return MultiplierState(self, start, limit, ramp_steps(self.ramp, steps), max(1, round(steps / self.rounds)))


class MultiplierState(State):
    """This is the state of `AugmentedLagrangian`.

    Args:
        rule: its options.
        start: as in `State`.
        limit: as in `State`.
        ramp: as in `State`.
        length: steps of a round.
    """

    def __init__(self, rule: AugmentedLagrangian, start: float, limit: float, ramp: int, length: int) -> None:
        super().__init__(start, limit, ramp)
        self.rule, self.length, self.penalty = rule, length, rule.penalty
        self.sum, self.last = 0.0, float("inf")

    def term(self, gap: Tensor, step: int) -> Tensor:
        """Return what the loss gains."""
        loss = augmented(gap, self.multiplier, self.penalty)
        self.sum += float(gap.detach())
        if (step + 1) % self.length == 0:
            self._end_round(self.sum / self.length)
            self.sum = 0.0
        return loss

    def _end_round(self, mean: float) -> None:
        self.multiplier = max(0.0, self.multiplier + self.penalty * mean)
        if mean > 0 and mean > self.last / 2:
            self.penalty = min(self.rule.most, self.penalty * self.rule.growth)
        self.last = max(mean, 0.0)
