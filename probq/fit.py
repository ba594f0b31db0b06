"""Fitting: stochastic variational inference under a budget, then fine-tuning of what was decided."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from tqdm import tqdm

from probq import cost as costs
from probq import decide
from probq.batches import Batches
from probq.budget import Budget, DualAscent
from probq.calibrate import calibrate, estimate_norms
from probq.errors import ProbqError
from probq.history import History, Step
from probq.likelihoods import Likelihood, for_target
from probq.program import Observation
from probq.quantized import Quantized
from probq.validate import validate

SNAPSHOT_EVERY = 25
ADAM = partial(torch.optim.Adam, fused=True)


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


def fit(
    q: Quantized,
    batches: Iterable[Any],
    budget: Budget | None = None,
    epochs: int = 10,
    *,
    validation: Iterable[Any] | None = None,
    progress: bool = True,
    checkpoint: Any = None,
    seed: int | None = None,
    **options: Any,
) -> History:
    """Fit the posterior in place: search for widths under the budget, then fine-tune at the widths decided.

    Args:
        q: from `quantize`, or from `Quantized.at` (then everything is fine-tuning).
        batches: iterable of `(input, target)`, usually a `DataLoader`.
        budget: limit on the expected cost; without one, nothing but the priors holds the widths down.
        epochs: passes over the data, both phases together.
        validation: like `batches`; evaluated at the mode after each epoch.
        progress: show a progress bar.
        checkpoint: path where the posterior is saved after every epoch.
        seed: makes the fit reproducible; the global random state is restored afterwards.
        options: see `steps`.

    Returns:
        The history of the fit.

    Raises:
        ProbqError: if the data is empty or not finite, the budget cannot be reached, an option is unknown, or the
            loss is not finite (the network then keeps the last good state).
    """
    _check_options(options)
    history = History(settings={"epochs": epochs, "budget": budget, "seed": seed, **options})
    held = Batches(validation, q.device) if validation is not None else None
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        running = steps(q, batches, budget, epochs, seed=seed, **options)
        total = epochs * len(Batches(batches, q.device)) if hasattr(batches, "__len__") else None
        bar = tqdm(running, total=total, disable=not progress, unit="step", dynamic_ncols=True)
        for step in bar:
            if history.steps and step.epoch != history.steps[-1].epoch:
                _end_epoch(q, history, held, checkpoint)
            history.steps.append(step)
            if step.step % 10 == 0:
                bar.set_postfix_str(_describe(step))
        _end_epoch(q, history, held, checkpoint)
    return history


def _describe(step: Step) -> str:
    limit = "" if step.limit is None else f"/{step.limit:.3g}"
    return f"{step.phase} loss {step.loss:.4f}, E[cost] {step.percent:.3g}{limit} %, multiplier {step.multiplier:.3g}"


def _end_epoch(q: Quantized, history: History, held: Batches | None, checkpoint: Any) -> None:
    if held is not None and history.steps:
        history.validation.append({"epoch": history.steps[-1].epoch, **validate(q, held)})
    if checkpoint is not None:
        q.save(checkpoint)


def steps(
    q: Quantized,
    batches: Iterable[Any],
    budget: Budget | None = None,
    epochs: int = 10,
    *,
    search: float = 0.6,
    temperature: float = 0.001,
    likelihood: Likelihood | None = None,
    rates: Rates | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = ADAM,
    seed: int | None = None,
) -> Iterator[Step]:
    """The training loop as a generator: each `next` is one step, so that it stays in the user's hands.

    While widths are learned, the loss of a step is the negative ELBO for one example,
    `E_q[-log p(y | x)] + temperature * KL / N`, plus the budget's term. Then widths are fixed at the mode within the
    budget, batch normalisation is re-estimated and folded, codes are rounded, and what ships is fine-tuned with a
    cosine schedule.

    Args:
        q, batches, budget, epochs: as in `fit`.
        search: share of the steps that learn widths.
        temperature: factor of all KL terms. 1 is the Bayesian posterior; deep networks need a cold one
            (F. Wenzel et al., 2020, "How Good is the Bayes Posterior in Deep Neural Networks Really?").
        likelihood: function from outputs to a law of the targets; by default categorical for integer targets,
            normal with learned noise for real ones.
        rates: learning rates.
        optimizer: makes an optimizer of parameter groups; by default Adam, one fused pass over the parameters.
        seed: sets torch's global random state.

    Yields:
        A record of each step, after the parameters were moved.

    Raises:
        ProbqError: as in `fit`; what can be checked is checked before the first step.
    """
    _check(epochs, search, temperature)
    data = Batches(batches, q.device)
    if budget is not None and decide.decided(q):
        decide.mode(q, budget)  # raises if the widths exceed it
    elif budget is not None:
        decide.problem_of(q, budget.cost).inside(budget.absolute(q.layers))
    if seed is not None:
        torch.manual_seed(seed)
    _prepare(q, data, likelihood)
    q.temperature = temperature
    total = epochs * len(data)
    searching = 0 if decide.decided(q) else max(1, round(search * total))
    rates = rates or Rates()
    return _run(q, data, budget, optimizer, rates, searching, total)


def _check_options(options: Mapping[str, Any]) -> None:
    known = [name for name, p in inspect.signature(steps).parameters.items() if p.kind is p.KEYWORD_ONLY and name != "seed"]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ProbqError(f"fit has no option {unknown[0]!r}; besides its own arguments it takes {', '.join(known)}")


def _check(epochs: int, search: float, temperature: float) -> None:
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ProbqError(f"epochs must be an integer of 1 or more, not {epochs!r}")
    if not 0 <= search <= 1:
        raise ProbqError(f"search is the share of steps that learn widths, 0 to 1, not {search!r}")
    if not temperature > 0 or not math.isfinite(temperature):
        raise ProbqError(f"temperature must be a positive number, not {temperature!r}")


def _prepare(q: Quantized, data: Batches, likelihood: Likelihood | None) -> None:
    if likelihood is not None:
        del q.likelihood  # torch lets no function take a module's place
        q.likelihood = likelihood
    if q.likelihood is None:
        q.likelihood = for_target(next(iter(data))[1])
    if isinstance(q.likelihood, torch.nn.Module):
        q.likelihood.to(q.device)
    if not q.calibrated and not decide.decided(q):
        calibrate(q, data)


def _run(
    q: Quantized, data: Batches, budget: Budget | None, optimizer: Any, rates: Rates, searching: int, total: int
) -> Iterator[Step]:
    loop = _Loop(q, data, budget)
    settled = decide.decided(q)
    try:
        q.train()
        if searching:
            moving = optimizer(_groups(q, rates, searching))
            yield from loop.run(moving, None, 0, searching, "search")
        q.budget = budget if budget is not None else q.budget
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

    def _step(self, moving: Any, rule: DualAscent | None, x: Any, y: Tensor, number: int, within: int, phase: str) -> Step:
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
