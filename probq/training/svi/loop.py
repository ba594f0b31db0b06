"""One fit from inside: the steps of its phases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from probq import cost as costs
from probq.cost.budget import Budgets, budgets
from probq.errors import ProbqError, sentence
from probq.network.program.leave_one_out import law_parameters, leave_one_out
from probq.network.program.program import Observation
from probq.network.quantized.quantized import Quantized
from probq.rules import Mover, Rule, State
from probq.training.ptq.batch_norm import estimate_before_use
from probq.training.svi.budget_constraint import BudgetConstraint, enforce_chance
from probq.training.svi.gradients import check_graph_kept, explain_gradients
from probq.training.svi.history import BudgetState, Step
from probq.utils.batches import Batches

SNAPSHOT_EVERY = 25


class Loop:
    """Steps of a network, over both phases of a fit or in a trial."""

    def __init__(self, q: Quantized, data: Batches, budget: Budgets, rule: Rule, draws: int) -> None:
        self.q, self.data, self.size = q, data, data.size
        self.rule, self.draws = rule, draws
        self.constraints = tuple(BudgetConstraint(q, own) for own in budgets(budget))
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
            enforce_chance(self.q, self.constraints)
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
        estimate_before_use(self.q, self.data)
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
        with explain_gradients():
            self._backward(single, loss, laws, settling)
        self.unchecked = False
        if mover is not None:
            exceeded = any(c.hard() > limit for c, limit in zip(self.constraints, limits, strict=True))
            mover.move(exceeded, number)
        moving.step()
        self._check_moved(number)
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

    def _held(self, expected: list[Tensor], limits: list[float], multipliers: list[float]) -> tuple[BudgetState, ...]:
        """Where every limit stands, if there is any; no multiplier is at work once widths are fixed."""
        rows = zip(self.constraints, expected, limits, multipliers or [0.0] * len(limits), strict=False)
        return tuple(
            BudgetState(float(mean.detach()) * 100 / c.full, limit * 100 / c.full, multiplier)
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
            except ValueError as error:
                told, cause = _told(error)
                raise told from cause
            with torch.no_grad():
                nll = -Observation(self.q.law(outputs[-1], y)).log_prob(y).mean()
        return loss, nll

    def _backward(self, single: Tensor, loss: Tensor, laws: list[nn.Parameter], settling: bool) -> None:
        """Gradients of all parameters: from `loss`, and what belongs to no law from one draw where `loss` has many.

        Scales then stay: their gradient is straight-through, and can lead away from the best bound. While laws settle,
        nothing else moves.
        """
        if self.unchecked:
            check_graph_kept(loss)
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
            raise self._stopped(f"the loss became {float(loss.detach())} at step {number}")

    def _check_moved(self, number: int) -> None:
        """Stop where a gradient moved a parameter to what is not finite, however good the loss was."""
        moved = [parameter.detach() for parameter in self.q.parameters() if parameter.requires_grad]
        if moved and not torch.isfinite(nn.utils.get_total_norm(moved, torch.inf)):
            name = next(n for n, p in self.q.named_parameters() if not p.detach().isfinite().all())
            raise self._stopped(f"a gradient at step {number} made {name} infinite or not a number")

    def _stopped(self, what: str) -> ProbqError:
        """The error that says what happened, with the last good state restored."""
        self.q.load_state_dict(self.good, strict=False)
        return ProbqError(
            f"{what}; the network keeps its state of step {self.good_step}. Lower the learning rates "
            "(rates=probq.Rates(...)) or check the data"
        )


def _told(error: Exception) -> tuple[ProbqError, BaseException | None]:
    """An error of a step and its cause, without the shapes of all sites that Pyro adds where it passes through."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    ours = [one for one in chain if isinstance(one, ProbqError)]
    if ours:
        return ours[-1], ours[-1].__cause__
    return ProbqError(f"the model cannot be fitted: {sentence(chain[-1])}"), chain[-1]


def _copied(q: Quantized) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in q.state_dict().items()}
