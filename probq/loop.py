"""One fit from inside: its steps over both phases, the learning rates, and what happens between the phases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor

from probq import cost as costs
from probq import decide
from probq.batches import Batches
from probq.budget import Budget, DualAscent
from probq.calibrate import estimate_norms
from probq.errors import ProbqError
from probq.history import Step
from probq.program import Observation
from probq.quantized import Quantized

SNAPSHOT_EVERY = 25


@dataclass(frozen=True)
class Rates:
    """Learning rates of Adam, by what they move.

    Attributes:
        weights: the network's own parameters, which are the locations of the codes.
        scales: exponents of the scales (log2).
        gates: log-odds of the gates; None: 20 times that of the weights, more in a short search.
        spread: logarithm of the code posteriors' spread.
    """

    weights: float = 1e-3
    scales: float = 5e-3
    gates: float | None = None
    spread: float = 5e-3


def run(
    q: Quantized, data: Batches, budget: Budget | None, optimizer: Any, rates: Rates, searching: int, total: int
) -> Iterator[Step]:
    """All steps of a fit: the search for widths, then the tuning of what was decided.

    Args:
        q: the network, calibrated and with a likelihood.
        data: the batches.
        budget: limit on the expected cost, or None.
        optimizer: makes an optimizer of parameter groups.
        rates: learning rates.
        searching: number of steps that learn widths.
        total: number of steps.
    """
    loop = _Loop(q, data, budget)
    settled = decide.decided(q)
    try:
        q.train()
        if searching:
            moving = optimizer(_groups(q, rates, searching))
            yield from loop.run(moving, None, 0, searching, "search")
        if searching < total:
            if not settled:
                _settle(q, data, budget)
            q.rounding = True
            q.train()
            moving = optimizer(_groups(q, rates, None))
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(moving, total - searching)
            yield from loop.run(moving, cosine, searching, total, "tune")
    finally:
        _release(q, settled)


def _settle(q: Quantized, data: Batches, budget: Budget | None) -> None:
    """Fix the widths at the mode within the budget and fold batch normalisation, re-estimated there."""
    decide.fix(q, q.mode(budget).widths)
    estimate_norms(q, data)
    q.folded = True


def _release(q: Quantized, settled: bool) -> None:
    q.rounding = False
    if not settled:
        q.folded = False
        for _, quantizer in q.named_quantizers():
            quantizer.fixed = None
    q.eval()


def _groups(q: Quantized, rates: Rates, searching: int | None) -> list[dict[str, Any]]:
    gates = rates.gates if rates.gates is not None else max(20 * rates.weights, 10 / (searching or 1000))
    chosen: dict[float, list[Tensor]] = {}
    for name, parameter in q.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if not parameter.requires_grad or (last == "logits" and searching is None):
            continue
        quantizing = name.startswith("quantizers.")
        rate = rates.weights
        if quantizing:
            rate = {"logits": gates, "log2_scale": rates.scales, "log_spread": rates.spread}.get(last, rates.weights)
            rate = gates if ".code_logits." in name else rate
        chosen.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in chosen.items()]


class _Loop:
    """Steps of one fit, over both phases."""

    def __init__(self, q: Quantized, data: Batches, budget: Budget | None) -> None:
        self.q, self.data, self.budget, self.size = q, data, budget, data.size
        self.cost = costs.bops if budget is None else budget.cost
        self.full = costs.full(q.layers, self.cost)
        self.tables = q.cost_tables(self.cost)
        self.elbo = TraceMeanField_ELBO()
        self.unchecked = True  # Pyro's checks are for the first step; on every one they are a tenth of its time
        self.stream = self._endless()
        self.good = _copied(q)
        self.good_step = 0

    def run(self, moving: Any, schedule: Any, first: int, last: int, phase: str) -> Iterator[Step]:
        """Steps `first` to `last - 1`."""
        rule = self._rule(last - first) if phase == "search" else None
        for number in range(first, last):
            x, y = next(self.stream)
            step = self._step(moving, rule, x, y, number, number - first, phase)
            if schedule is not None:
                schedule.step()
            yield step

    def _endless(self) -> Iterator[tuple[Any, Tensor]]:
        while True:
            yield from self.data

    def _rule(self, length: int) -> DualAscent | None:
        if self.budget is None:
            return None
        with torch.no_grad():
            start = float(self.q.expected_cost(self.tables))
        limit = self.budget.absolute(self.q.layers)
        return DualAscent(start, limit, ramp=max(1, length // 2), rate=min(0.1, 20 / length))

    def _step(
        self, moving: Any, rule: DualAscent | None, x: Any, y: Tensor, number: int, within: int, phase: str
    ) -> Step:
        moving.zero_grad(set_to_none=True)
        elbo, nll = self._elbo(x, y)
        expected = self.q.expected_cost(self.tables)
        loss = elbo if rule is None else elbo + rule.term(expected, within)
        self._guard(loss, number)
        loss.backward()
        moving.step()
        limit = rule.limit_at(within) if rule else self.budget.absolute(self.q.layers) if self.budget else None
        percent = 100 / self.full
        return Step(
            number,
            number // len(self.data),
            phase,
            float(loss.detach()),
            float(nll),
            float(elbo.detach()) - float(nll),
            float(expected.detach()) * percent,
            None if limit is None else limit * percent,
            rule.multiplier if rule else 0.0,
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

    def _guard(self, loss: Tensor, number: int) -> None:
        """Stop at a loss that is not finite, with the last good state restored."""
        if not torch.isfinite(loss):
            self.q.load_state_dict(self.good, strict=False)
            raise ProbqError(
                f"the loss became {float(loss.detach())} at step {number}; the network keeps its state of step "
                f"{self.good_step}. Lower the learning rates (rates=probq.Rates(...)) or check the data"
            )
        if number % SNAPSHOT_EVERY == 0:
            self.good, self.good_step = _copied(self.q), number


def _copied(q: Quantized) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in q.state_dict().items()}
