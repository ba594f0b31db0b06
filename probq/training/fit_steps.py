"""The steps of a fit are in the hands of the user here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from probq.cost.budget import Budgets, budgets, one_or_several
from probq.decisions.widths import fixed_by_decision
from probq.decisions.within_budget import check_budget_reachable
from probq.likelihoods import Likelihood
from probq.network.program.program import check_posterior
from probq.network.quantized.quantized import Quantized
from probq.priors.energies.energy import Energy
from probq.rules import DualAscent, Rule
from probq.training.check_options import check_options, check_rule
from probq.training.distillation import Teacher, as_teacher
from probq.training.energy_prior import take_prior
from probq.training.phases import run_phases
from probq.training.preparation import prepare
from probq.training.refinement.refinement import Refinement
from probq.training.small_posteriors import SMALL_DRAWS, is_small, small_rates
from probq.training.svi.course import Course
from probq.training.svi.history import Step
from probq.training.svi.learning_rates import Rates, check_optimizer
from probq.training.svi.loop import steps_per_epoch
from probq.training.svi.trainer import Trainer
from probq.training.svi.updates import Clip, Updates
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError
from probq.utils.random_stream import Stream, StreamIterator

ADAM = partial(torch.optim.Adam, fused=True)
DUAL_ASCENT = DualAscent()
SEARCH_SHARE = 0.6  # of the steps


def steps(
    q: Quantized,
    batches: Iterable[Any],
    budget: Budgets = None,
    epochs: int = 10,
    *,
    search: float | None = None,
    rounding: bool = True,
    temperature: float = 0.001,
    draws: int | None = None,
    likelihood: Likelihood | None = None,
    rates: Rates | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = ADAM,
    clip: Clip | None = None,
    average: float | None = None,
    accumulate: int = 1,
    rule: Rule = DUAL_ASCENT,
    prior: Energy | None = None,
    teacher: Teacher | nn.Module | None = None,
    validation: Iterable[Any] | None = None,
    evaluations: int = 100,
    trials: int = 4,
    seed: int | None = None,
    progress: bool = False,
) -> FitSteps:
    """The training loop as a generator: each `next` is one step, so that it stays in the user's hands.

    While widths are learned, the loss of a step is the negative ELBO for one example,
    `E_q[-log p(y | x)] + temperature * KL / N`, plus the budget's term. Then widths are fixed at the mode within the
    budget (or as `probq.decide` measures and trials confirm), codes are rounded, and the network is fine-tuned with a
    cosine schedule. Batch normalisation is re-estimated and folded: after the last step, as folding keeps all codes, or
    at once where the plan's profile is "shift", since scales in powers of two do not follow a gain.

    Args:
        q: as in `fit`.
        batches: as in `fit`.
        budget: as in `fit`.
        epochs: as in `fit`.
        search: share of the steps that learn widths; by default 0.6, or all of them where 64 draws are taken by default
            (see `draws`) and no budget asks for a decision.
        rounding: whether codes are rounded while the network is tuned at fixed widths, for a better mode, and before it
            in a search at temperatures below 1, for less noise; a search that is the whole fit, or whose plan has an
            estimator or a law of codes of its own, draws them. False always draws them, so that the posterior of the
            codes is fitted, for draws and `probq.ensemble`.
        temperature: factor of all KL terms. 1 is the Bayesian posterior; deep networks need a cold one
            (F. Wenzel et al., 2020, "How Good is the Bayes Posterior in Deep Neural Networks Really?").
        draws: of widths and codes in each step. One takes the gradient of each layer's estimator in the plan; from 2
            on, the laws of widths and codes have the unbiased gradient of `leave_one_out`, whatever the estimator;
            rates fall with a cosine over the search, scales stay, and in the search's second half nothing but those
            laws moves, so that they settle. By default 64 for a network of at most 64 quantized weights that is fitted
            at temperature 1 with the plan's default estimator, so that a posterior small enough to be checked is right;
            otherwise one.
        likelihood: function from outputs to a law of the targets; by default normal with learned noise for real
            targets, and categorical for integer ones. Their classes are on the output's last axis, or on axis 1 where
            the shapes of the first batch allow only that (`[N, C, H, W]` for targets `[N, H, W]`); targets of -100 are
            not observed. See `probq.likelihoods.Categorical` for class weights and other targets to leave out.
        rates: learning rates. Where 64 draws are taken by default in a fit that is all search, weights and gates move
            at `50 / steps` at least, so that some hundred steps lead a small posterior to where it belongs.
        optimizer: makes an optimizer of parameter groups; by default Adam, one fused pass over the parameters.
        clip: greatest norm of the gradient of all parameters together, to which a longer one is scaled down; or a
            function of the parameters that changes their gradients, such as
            `partial(torch.nn.utils.clip_grad_value_, clip_value=1.0)`. It changes the path, and not the bound.
        average: decay of an exponential moving average of the parameters, such as 0.999. It begins with each phase,
            takes the parameters' place at its end, and is what `fit` validates; what steps record is the bound of the
            parameters themselves.
        accumulate: number of batches whose gradients are added up in one step, each with a draw of widths and codes of
            its own; the bound of a step is then the mean over all their examples. An epoch has so many times fewer
            steps.
        rule: enforces the budget while widths are learned, one of `probq.rules`.
        prior: an energy for one example in nats, of a criterion; for other units see `Energy.to_nats`. It takes the
            place of the priors of widths, and counts as much as the data does: `P(widths) proportional to
            exp(-N energy / temperature)`; `0.1 * energy` counts a tenth. Under a budget the search starts at the
            widths of `probq.allocate`.
        teacher: a network whose outputs are learned from besides the targets, or one of `probq.distillation`, where it
            says what that makes of the bound.
        validation: held-out batches; if given, `probq.decide` measures on them which widths to tune for.
        evaluations: greatest number of networks it measures; 0 takes the most probable widths.
        trials: number of choices that are tuned for a while on copies, all from where the search ended and on the same
            batches; the one of least validation loss goes on from there. Half of them are those that `probq.decide`
            measured best, the others the widest uniform widths within the budget, if there are any. Together they take
            a quarter of the tuning's steps; none are made where each would have fewer than 200.
        seed: decides the random numbers of all steps; by default torch's global random state does, which moves on.
        progress: show a progress bar while networks are measured.

    Returns:
        An iterator of a record of each step, after the parameters were moved; `close()` ends the fit where it stands.

    Raises:
        ProbqError: as in `fit`; what can be checked is checked before the first step.
    """
    check_posterior(q, "steps")
    check_options(epochs, evaluations, trials, seed, search, temperature)
    check_rule(rule, draws)
    taught_by = as_teacher(teacher)
    check_optimizer(optimizer)
    if rates is not None and not isinstance(rates, Rates):
        raise ProbqError(f"rates is probq.Rates(...), such as probq.Rates(weights=1e-3), not {rates!r:.80}")
    data = _as_batches(batches, q, "data")
    check_budget_reachable(q, budget)
    stream = Stream(seed)
    with stream.training():
        prepare(q, data, likelihood, temperature)
        if prior is not None:
            take_prior(q, prior, budget, data.size)
    several = budgets(budget)
    q.budget = one_or_several(budget) if several else q.budget
    total = epochs * steps_per_epoch(data, accumulate)
    small = draws is None and is_small(q, temperature, rule)
    if search is None:
        search = 1.0 if small and not several else SEARCH_SHARE
    searching = 0 if fixed_by_decision(q) else max(1, round(search * total))
    rates = rates or (small_rates(total) if small and searching == total else Rates())
    updates = Updates(optimizer, rates, clip, average)
    updates.check(q, total)
    lessons = None if taught_by is None else taught_by.begin(q)
    draws = draws or (SMALL_DRAWS if small else 1)
    trainer = Trainer(data, several, rule, updates, draws, rounding, lessons, accumulate, searching < total)
    refinement = None
    if validation is not None and evaluations:
        refinement = Refinement(_as_batches(validation, q, "validation data"), evaluations, trials, progress)
    course = Course([data.source] if refinement is None else [data.source, refinement.validation.source])
    if lessons is not None:
        course.lasting = {"lessons": lessons}
    last = "search" if searching == total else "tune"
    return FitSteps(run_phases(q, trainer, refinement, searching, total, course), stream, course, last)


class FitSteps(StreamIterator[Step]):
    """These are the steps of a fit, its course, and the name of its last phase."""

    def __init__(self, items: Iterator[Step], stream: Stream, course: Course, last: str) -> None:
        super().__init__(items, stream)
        self.course, self.last = course, last

    def stop(self) -> None:
        """End the fit where it stands, as one that is finished."""
        self.close()
        self.course.enter("finished", range(self.course.next, self.course.next), {})


def _as_batches(batches: Iterable[Any], q: Quantized, name: str) -> Batches:
    return batches if isinstance(batches, Batches) else Batches(batches, q.device, name)
