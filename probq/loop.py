"""One fit from inside: its steps over both phases, the learning rates, and what happens between the phases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from probq import cost as costs
from probq.batches import Batches
from probq.budget import Budgets, budgets
from probq.calibrate import estimate_norms, has_norms
from probq.constraint import Constraint, hold
from probq.decide import fix, settled
from probq.errors import ProbqError
from probq.history import Held, Step
from probq.leave_one_out import law_parameters, leave_one_out
from probq.program import Observation
from probq.quantized import Quantized
from probq.rules import Mover, Rule, State

SNAPSHOT_EVERY = 25
GATES = 20  # times the rate of the weights


@dataclass(frozen=True)
class Rates:
    """Learning rates of Adam, by what they move.

    Attributes:
        weights: the network's own parameters, which are the locations of the codes.
        scales: exponents of the scales (log2), and the logarithm of a learned noise.
        gates: log-odds of the gates; None: 20 times that of the weights, more in a short search.
        spread: logarithm of the code posteriors' spread.
    """

    weights: float = 1e-3
    scales: float = 5e-3
    gates: float | None = None
    spread: float = 5e-3


def run(
    q: Quantized,
    data: Batches,
    budget: Budgets,
    rule: Rule,
    optimizer: Any,
    rates: Rates,
    searching: int,
    total: int,
    measured: Callable[[], Mapping[str, Any]] | None = None,
    rounding: bool = True,
    draws: int = 1,
) -> Iterator[Step]:
    """All steps of a fit: the search for widths, then the tuning of what was decided.

    Args:
        q: the network, calibrated and with a likelihood.
        data: the batches.
        budget: limit on the expected cost, several, or None.
        rule: enforces it in the search.
        optimizer: makes an optimizer of parameter groups.
        rates: learning rates.
        searching: number of steps that learn widths.
        total: number of steps.
        measured: gives the widths to tune for; by default those of the mode.
        rounding: whether codes are rounded in the tuning, or drawn.
        draws: of widths and codes in each step; from 2 on, their laws have the gradient of `leave_one_out`.
    """
    loop = _Loop(q, data, budget, rule, draws)
    fixed = settled(q)
    try:
        q.train()
        if searching:
            for _, quantizer in q.named_quantizers():
                quantizer.tuned = None
            moving = optimizer(_groups(q, rates, searching))
            falling = torch.optim.lr_scheduler.CosineAnnealingLR(moving, searching) if draws > 1 else None
            yield from loop.search(moving, searching, falling)
        if searching < total:
            if not fixed:
                fix(q, q.mode(budget, measured=False).widths if measured is None else measured())
            if _folds_late(q):
                q.folded = False
            else:
                loop.fold()
            for _, quantizer in q.named_quantizers():
                quantizer.tuned = None if quantizer.fixed is None else quantizer.fixed.clone()
            q.rounding = rounding
            q.train()
            moving = optimizer(_groups(q, rates, None))
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(moving, total - searching)
            yield from loop.tune(moving, cosine, range(searching, total))
    except (KeyboardInterrupt, GeneratorExit):
        estimate_live(q, data)
        raise
    finally:
        _release(q, fixed)


def _folds_late(q: Quantized) -> bool:
    """Whether batch normalisation can be folded when all is learned: integer multipliers follow its gains, codes stay.

    Scales in powers of two do not follow, so that the folded network has to be trained.
    """
    folded = [layer.weight for layer in q.layers if layer.norm]
    return bool(folded) and has_norms(q) and all(q.weights[name].multipliers > 1 for name in folded)


def estimate_live(q: Quantized, data: Batches) -> None:
    """Re-estimate normalisation that follows the batches at decided widths; its running averages lag behind."""
    if settled(q) and not q.folded and has_norms(q):
        q.eval()  # the statistics of what ships: without dropout
        estimate_norms(q, data)
        q.train()


def _release(q: Quantized, fixed: bool) -> None:
    q.rounding, q.folded = False, fixed
    if not fixed:
        for _, quantizer in q.named_quantizers():
            quantizer.fixed = None
    q.eval()


def _groups(q: Quantized, rates: Rates, searching: int | None) -> list[dict[str, Any]]:
    gates = rates.gates if rates.gates is not None else max(GATES * rates.weights, 10 / (searching or 1000))
    chosen: dict[float, list[Tensor]] = {}
    for name, parameter in q.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if not parameter.requires_grad or (last == "logits" and searching is None):
            continue
        quantizing = name.startswith(("quantizers.", "tables."))
        rate = rates.weights
        if quantizing:
            rate = {"logits": gates, "log2_scale": rates.scales, "log_spread": rates.spread}.get(last, rates.weights)
            rate = gates if ".code_logits." in name else rate
        elif name == "likelihood.log_sd":
            rate = rates.scales
        chosen.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in chosen.items()]


class _Loop:
    """Steps of one fit, over both phases."""

    def __init__(self, q: Quantized, data: Batches, budget: Budgets, rule: Rule, draws: int) -> None:
        self.q, self.data, self.size = q, data, data.size
        self.rule, self.draws = rule, draws
        self.constraints = tuple(Constraint(q, own) for own in budgets(budget))
        self.tables = q.cost_tables()  # of bit operations, shown where nothing is limited
        self.elbo = TraceMeanField_ELBO()
        self.unchecked = True  # Pyro's checks are for the first step; on every one they are a tenth of its time
        self.stream = self._endless()
        self.good = _copied(q)
        self.good_step = 0

    def search(self, moving: Any, last: int, schedule: Any = None) -> Iterator[Step]:
        """Steps 0 to `last - 1`, in which widths are learned."""
        states = tuple(self.rule.begin(c.start(), c.limit, last) for c in self.constraints)
        mover = self.rule.mover(self.q, last) if states else None
        try:
            for number in range(last):
                yield self._step(moving, number, "search", states, mover, settling=number >= last // 2)
                if schedule is not None:
                    schedule.step()
            hold(self.q, self.constraints)
        finally:
            if mover is not None:
                mover.close()

    def tune(self, moving: Any, schedule: Any, numbers: range) -> Iterator[Step]:
        """Steps at fixed widths; batch normalisation is folded after the last one, unless it was before."""
        for number in numbers:
            step = self._step(moving, number, "tune")
            schedule.step()
            if number == numbers[-1]:  # weights that change codes until the end would spoil earlier statistics
                self.fold()
            yield step

    def fold(self) -> None:
        """Estimate and fold batch normalisation, unless it is folded."""
        estimate_live(self.q, self.data)
        self.q.folded = True
        self.q.train()

    def _endless(self) -> Iterator[tuple[Any, Tensor]]:
        while True:
            yield from self.data

    def _step(
        self,
        moving: Any,
        number: int,
        phase: str,
        states: tuple[State, ...] = (),
        mover: Mover | None = None,
        settling: bool = False,
    ) -> Step:
        x, y = next(self.stream)
        moving.zero_grad(set_to_none=True)
        single, nll = self._elbo(x, y)
        laws = law_parameters(self.q) if self.draws > 1 else []
        elbo = leave_one_out(self.q, x, y, self.size, self.draws) / self.size if laws else single
        self._check(elbo, number)
        expected = [c.expected() for c in self.constraints]
        limits = [state.limit_at(number) for state in states] or [c.limit for c in self.constraints]
        loss = elbo
        for state, constraint, mean, limit in zip(states, self.constraints, expected, limits, strict=False):
            loss = loss + state.term(constraint.gap(mean, limit), number)
        self._check(loss, number)
        if number % SNAPSHOT_EVERY == 0:
            self.good, self.good_step = _copied(self.q), number
        self._backward(single, loss, laws, settling)
        if mover is not None:
            exceeded = any(c.hard() > limit for c, limit in zip(self.constraints, limits, strict=True))
            mover.move(exceeded, number)
        moving.step()
        held = self._held(expected, limits, [state.multiplier for state in states])
        return Step(
            number,
            number // len(self.data),
            phase,
            float(loss.detach()),
            float(nll),
            float(elbo.detach()) - float(nll),
            held[0].percent if held else self._percent(),
            held[0].limit if held else None,
            held[0].multiplier if held else 0.0,
            held[1:],
        )

    def _percent(self) -> float:
        """Expected bit operations where nothing limits a cost."""
        with torch.no_grad():
            return float(costs.percent(float(self.q.expected_cost(self.tables)), self.q.layers))

    def _held(self, expected: list[Tensor], limits: list[float], multipliers: list[float]) -> tuple[Held, ...]:
        """Where every limit stands, if there is any; no multiplier is at work once widths are fixed."""
        rows = zip(self.constraints, expected, limits, multipliers or [0.0] * len(limits), strict=False)
        return tuple(
            Held(float(mean.detach()) * 100 / c.full, limit * 100 / c.full, multiplier)
            for c, mean, limit, multiplier in rows
        )

    def _elbo(self, x: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        """Negative ELBO and negative log-likelihood for one example, in nats."""
        outputs: list[Any] = []

        def model(*args: Any) -> None:
            outputs.append(self.q.model(*args))

        with pyro.validation_enabled(self.unchecked):
            try:
                loss = self.elbo.differentiable_loss(model, self.q.guide, x, y, self.size) / self.size
            except ProbqError:
                raise
            except ValueError as error:  # the first batch is checked by torch and Pyro
                raise ProbqError(f"the data does not fit the likelihood: {error}") from error
            with torch.no_grad():
                nll = -Observation(self.q.law(outputs[-1], y)).log_prob(y).mean()
        self.unchecked = False
        return loss, nll

    def _backward(self, single: Tensor, loss: Tensor, laws: list[nn.Parameter], settling: bool) -> None:
        """Gradients of all parameters: from `loss`, and what belongs to no law from one draw where `loss` has many.

        Scales then stay: their gradient is straight-through, and can lead away from the best bound. While laws settle,
        nothing else moves.
        """
        if laws:
            still = {id(parameter) for parameter in laws}
            still |= {id(quantizer.log2_scale) for _, quantizer in self.q.named_quantizers()}
            others = [p for p in self.q.parameters() if p.requires_grad and id(p) not in still]
            loss.backward(inputs=laws)
            if others and not settling:
                single.backward(inputs=others)
        else:
            loss.backward()

    def _check(self, loss: Tensor, number: int) -> None:
        """Stop at a loss that is not finite, with the last good state restored."""
        if not torch.isfinite(loss):
            self.q.load_state_dict(self.good, strict=False)
            raise ProbqError(
                f"the loss became {float(loss.detach())} at step {number}; the network keeps its state of step "
                f"{self.good_step}. Lower the learning rates (rates=probq.Rates(...)) or check the data"
            )


def _copied(q: Quantized) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in q.state_dict().items()}
