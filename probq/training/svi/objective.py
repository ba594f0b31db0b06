"""The objective is the negative evidence lower bound (ELBO) of a batch, with its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from probq.network.program.program import Program
from probq.training.distillation.lessons import Lesson
from probq.training.processes.alone import Processes
from probq.training.svi.elbo.leave_one_out import law_parameters, leave_one_out
from probq.training.svi.elbo.negative_elbo import Elbo, NegativeElbo
from probq.training.svi.gradients import check_graph_kept, explain_gradients
from probq.utils.errors import ProbqError, sentence


class Bound(NamedTuple):
    """A bound holds what one batch gives, for one example in nats.

    Attributes:
        value: the negative ELBO with the gradient that moves the laws, a scalar.
        single: the negative ELBO of one draw, a scalar; `value` itself where one draw is taken.
        nll: the negative log-likelihood of that draw.
        probs: the probability of every rung of every quantizer, `[*gates, B]`.
        laws: the parameters that `value` moves, where it is a mean of several draws; otherwise none, and it moves all.
        law: of the targets given the outputs of that draw.
        taught: the divergence of a lesson, of that draw, or 0.
        data: what the data adds to `value`: `nll`, mixed with `taught` where there is a lesson.
    """

    value: Tensor
    single: Tensor
    nll: float
    probs: Mapping[str, Tensor]
    laws: list[nn.Parameter]
    law: Distribution
    taught: float
    data: float


class Objective:
    """The objective is the negative ELBO of a network: `E_q[-log p(y | x)] + temperature * KL / N`.

    Args:
        q: the network, with a likelihood.
        size: number of examples `N`.
        draws: of widths and codes; from 2 on, their laws have the gradient of `leave_one_out`.
        processes: of the fit, which draw the same widths where one draw is taken; by default one alone.
    """

    def __init__(self, q: Program, size: int, draws: int, processes: Processes | None = None) -> None:
        self.q, self.size, self.draws = q, size, draws
        self.elbo = NegativeElbo(q, processes)
        self.unchecked = True  # checks of distributions are for the first step

    def __call__(self, x: Any, y: Tensor, lesson: Lesson | None = None) -> Bound:
        """Return the bound of a batch, mixed with what a teacher says to it."""
        elbo = self._single(x, y, lesson)
        single = elbo.loss / self.size
        laws = law_parameters(self.q) if self.draws > 1 else []
        value = leave_one_out(self.q, x, y, self.size, self.draws, lesson) / self.size if laws else single
        nll, taught = float(elbo.nll), 0.0 if elbo.taught is None else float(elbo.taught)
        data = nll if lesson is None else lesson.mixed(nll, taught)
        return Bound(value, single, nll, elbo.probs, laws, elbo.law, taught, data)

    def backward(self, loss: Tensor, bound: Bound, settling: bool, share: float = 1.0) -> None:
        """Give all parameters their gradients: from `loss`, and what belongs to no law from one draw where it has many.

        Scales then stay: their gradient is straight-through, and can lead away from the best bound. While laws settle,
        nothing else moves.

        Args:
            loss: the bound's value and what was added to it.
            bound: of the same batch.
            settling: whether laws settle.
            share: of the batch in a step of several, by which `loss` is scaled already.
        """
        with explain_gradients():
            if self.unchecked:
                check_graph_kept(loss)
            if bound.laws:
                still = {id(parameter) for parameter in bound.laws}
                still |= {id(quantizer.log2_scale) for _, quantizer in self.q.named_quantizers()}
                others = [p for p in self.q.parameters() if p.requires_grad and id(p) not in still]
                loss.backward(inputs=bound.laws)
                if others and not settling:
                    (bound.single * share).backward(inputs=others)
            else:
                loss.backward()
        self.unchecked = False

    def _single(self, x: Any, y: Tensor, lesson: Lesson | None) -> Elbo:
        """Return the negative ELBO of one draw."""
        with pyro.validation_enabled(self.unchecked):
            try:
                return self.elbo(x, y, self.size, lesson)
            except ValueError as error:
                told, cause = _told(error)
                raise told from cause


def _told(error: Exception) -> tuple[ProbqError, BaseException | None]:
    """An error of a step and its cause, without the shapes of all sites that Pyro adds where it passes through."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    ours = [one for one in chain if isinstance(one, ProbqError)]
    if ours:
        return ours[-1], ours[-1].__cause__
    return ProbqError(f"the model cannot be fitted: {sentence(chain[-1])}"), chain[-1]
