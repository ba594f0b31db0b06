"""Gates go down while the limit is exceeded and up while it is not, in place of a term of the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probq.network.program.program import Program
from probq.network.quantizers.base import HELD, Quantizer
from probq.rules.directions import Direction, gradient
from probq.rules.rule import Mover, Rule, State, check_positive, check_share, ramp_steps

SLOWEST, FASTEST = 0.1, 4.0  # bounds of a move, as multiples of the typical one
FARTHEST = 3.0  # log-odds that no gate leaves


@dataclass(frozen=True)
class ConstraintGuided(Rule):
    """Gates move by rule instead of by the loss's gradient: with `s` the size of a step and `d` a direction,

        log-odds <- clip(log-odds - s clip(d / typical |d|), -3, 3).

    While the cost of the most probable widths exceeds the limit in force, every gate moves down, by a tenth to four
    times the typical move; else gates move up, by nothing to four times of it. The typical `|d|` is the geometric mean
    over gates, each quantizer counting once. In the last part of the search no gate moves up, and moves down are so
    large that every gate can close before the end: the most probable widths then keep the limit, whatever the options,
    if costs grow with widths.

    This is a re-implementation in probq's terms: the paper's text was not at hand, its step sizes may differ, and its
    gates are real numbers where these are log-odds of a posterior. That posterior is no longer a minimum of the ELBO in
    its widths, and `E[cost]` may exceed the limit that the most probable widths keep.

    Args:
        direction: function of gradient, magnitude and whether a limit is exceeded, one of `probq.rules.gradient`,
            `gradient_plus_magnitude`, `gradient_times_magnitude`, or the user's own like them.
        smooth: share of the old value in the moving average of `|gradient|` that the direction is given; 0 for none.
        travel: sum of all typical moves of a search, in log-odds.
        ramp: share of the search over which the limit comes down to its full force.
        settle: share of the search, at its end, in which no gate moves up.

    Raises:
        ProbqError: if an option is not in its range.

    Source: Q. Van Baelen, P. Karsmakers, 2024, "Constraint Guided Model Quantization of Neural Networks".
    """

    direction: Direction = gradient
    travel: float = 20.0
    smooth: float = 0.9
    ramp: float = 0.5
    settle: float = 0.1

    def __post_init__(self) -> None:
        check_positive("travel", self.travel)
        check_share("smooth", self.smooth)
        check_share("ramp", self.ramp)
        check_share("settle", self.settle)

    def begin(self, start: float, limit: float, steps: int) -> NoPenaltyState:
        """Return the state of one limit."""
        return NoPenaltyState(start, limit, ramp_steps(self.ramp, steps))

    def mover(self, q: Program, steps: int) -> GuidedGates:
        """Return what moves the gates."""
        return GuidedGates(self, q, steps)


class NoPenaltyState(State):
    """This state belongs to a limit that adds nothing to the loss."""

    def term(self, gap: Tensor, step: int) -> Tensor:
        """Return zero."""
        return torch.zeros_like(gap).detach()


class GuidedGates(Mover):
    """This mover moves all gates of a network by a rule.

    Args:
        rule: its options.
        q: the network.
        steps: length of the search.
    """

    def __init__(self, rule: ConstraintGuided, q: Program, steps: int) -> None:
        self.rule, self.q, self.steps = rule, q, steps
        self.free = {name: quantizer for name, quantizer in q.named_quantizers() if quantizer.free}
        self.slopes: dict[str, Tensor] = {}  # moving average of |gradient|
        self.inputs: dict[str, Tensor] = {}  # mean |input| of the last batch
        names = q.input_names if rule.direction is not gradient else ()
        self.hooks = [
            q.quantizer(name).register_forward_pre_hook(self._watch(name)) for name in names if name in self.free
        ]

    @torch.no_grad()
    def move(self, exceeded: bool, step: int) -> None:
        """Move every gate."""
        for name, quantizer in self.free.items():
            now = _gradient(quantizer)
            self.slopes[name] = now if name not in self.slopes else now + self.rule.smooth * (self.slopes[name] - now)
        ways = {
            name: self.rule.direction(self.slopes[name], self._magnitude(name, quantizer), exceeded)
            for name, quantizer in self.free.items()
        }
        left = self.steps - step
        settling = left <= math.ceil(self.rule.settle * self.steps)
        size = self.rule.travel / self.steps
        least = 1.01 * FARTHEST / left if settling else 0.0
        typical = _typical(list(ways.values()))
        for name, quantizer in self.free.items():
            way, held = ways[name] / typical, quantizer.logits >= HELD
            if exceeded:
                quantizer.logits.sub_((size * way.clamp(SLOWEST, FASTEST)).clamp_min(least))
            elif not settling:
                quantizer.logits.sub_(size * way.clamp(-FASTEST, 0))
            quantizer.logits.clamp_(-FARTHEST, FARTHEST)
            quantizer.logits[held] = HELD
            quantizer.logits.grad = None  # the optimizer leaves alone what has no gradient

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self.hooks:
            hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the averages that the next moves depend on."""
        return {"slopes": dict(self.slopes), "inputs": dict(self.inputs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        for name, kept in state_dict.items():
            vars(self)[name] = {of: tensor.to(self.free[of].logits.device) for of, tensor in kept.items()}

    def _watch(self, name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...]) -> None:
            self.inputs[name] = args[0].detach().abs().mean()

        return hook

    def _magnitude(self, name: str, quantizer: Quantizer) -> Tensor:
        """Return the mean magnitude of what shares a gate, `[*gates, 1]`."""
        if name not in self.q.weight_names:
            return self.inputs.get(name, quantizer.logits.new_zeros(())).unsqueeze(-1)
        weight = self.q.location(name).abs()
        sharing = weight.numel() // math.prod(quantizer.gates)
        return (weight.sum_to_size(quantizer.gates) / sharing).unsqueeze(-1)


def _gradient(quantizer: Quantizer) -> Tensor:
    return torch.zeros_like(quantizer.logits) if quantizer.logits.grad is None else quantizer.logits.grad.abs()


def _typical(ways: list[Tensor]) -> Tensor:
    """Return the geometric mean of all sizes, each tensor counting once."""
    logs = torch.stack([way.abs().clamp(1e-30, 1e30).log().mean() for way in ways])
    return logs.mean().exp()
