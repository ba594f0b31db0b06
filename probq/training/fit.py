"""Fitting: stochastic variational inference under a budget, then fine-tuning of what was decided."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from probq.cost.budget import Budgets, budgets, one_or_several
from probq.decisions.widths import fixed_by_decision
from probq.decisions.within_budget import check_budget_reachable
from probq.evaluation.diagnostics.held_out import validate
from probq.likelihoods import Likelihood
from probq.network.program.program import check_posterior
from probq.network.quantized.quantized import Quantized
from probq.priors.energies.energy import Energy
from probq.rules import DualAscent, Rule
from probq.training.check_options import check_options, check_rule
from probq.training.checkpoints.call import describe_call
from probq.training.checkpoints.folder import checkpoint_folder
from probq.training.checkpoints.keeper import Keeper
from probq.training.energy_prior import take_prior
from probq.training.phases import run_phases
from probq.training.preparation import prepare
from probq.training.ptq.batch_norm import estimate_before_use
from probq.training.refinement.refinement import Refinement
from probq.training.small_posteriors import SMALL_DRAWS, is_small, small_rates
from probq.training.svi.bound_trend import warn_unsettled
from probq.training.svi.course import Course
from probq.training.svi.history import History, Step
from probq.training.svi.learning_rates import Rates, check_optimizer
from probq.training.svi.trainer import Trainer
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError
from probq.utils.random_stream import Stream, StreamIterator

ADAM = partial(torch.optim.Adam, fused=True)
DUAL_ASCENT = DualAscent()
SEARCH_SHARE = 0.6  # of the steps
OWN = ("validation", "seed", "progress")  # arguments of fit, not among its options


def fit(
    q: Quantized,
    batches: Iterable[Any],
    budget: Budgets = None,
    epochs: int = 10,
    *,
    validation: Iterable[Any] | None = None,
    progress: bool = True,
    checkpoint: Any = None,
    every: int | None = None,
    seed: int | None = None,
    **options: Any,
) -> History:
    """Fit the posterior in place: search for widths under the budget, then fine-tune at the widths decided.

    Args:
        q: from `quantize`, or from `Quantized.at` (then everything is fine-tuning).
        batches: iterable of `(input, target)`, usually a `DataLoader`.
        budget: limit on the expected cost, or a list of limits that all hold, each with a multiplier of its own;
            without one, nothing but the priors holds the widths down.
        epochs: passes over the data, both phases together.
        validation: like `batches`; evaluated at the mode after each epoch. The widths to tune for are then those of
            `probq.decide`, or in longer fits those that came out best of trials (see `steps`), and `q.mode(budget)`
            returns them; the laws of the widths then know what was measured. `evaluations=0` takes the most probable
            ones and leaves the laws as the search learned them.
        progress: show a progress bar.
        checkpoint: a folder, which is a path without a suffix, for checkpoints of all that the fit depends on: the same
            call made again goes on where it was stopped or killed, and its result is the same to the last bit on the
            same machine. Where the fit was finished, it returns at once. Or a file, such as "posterior.safetensors",
            where the posterior alone is saved after every epoch.
        every: number of steps between two checkpoints in a folder; by default those of an epoch. The last two are kept.
        seed: makes the fit reproducible; the global random state is restored afterwards.
        options: see `steps`.

    Returns:
        The history of the fit.

    Warns:
        UserWarning: if the bound had not settled when the search ended: over its last third it changed by more than a
            fifth of the range it passed through, and surely so; searches below 300 steps are too short to tell. If
            layers at 0 bits make the outputs the same for all inputs. If a checkpoint cannot be written, or the newest
            one is damaged.

    Raises:
        ProbqError: if the data is empty or not finite, the budget cannot be reached, an option is unknown, the folder
            holds checkpoints of another fit, or the loss is not finite (the network then keeps the last good state).
    """
    check_posterior(q, "fit")
    _check_options(options)
    folder = checkpoint_folder(checkpoint, every)
    history = History(settings={"epochs": epochs, "budget": budget, "seed": seed, **options})
    held_out = Batches(validation, q.device, "validation data") if validation is not None else None
    data = Batches(batches, q.device)
    chosen = {**_defaults(), "budget": budget, "epochs": epochs, "seed": seed, **options}
    keeper = None if folder is None else Keeper(folder, every or len(data), q, describe_call(data, held_out, q, chosen))
    running = steps(q, data, budget, epochs, seed=seed, validation=held_out, progress=progress, **options)
    if keeper is not None and isinstance(running, FitSteps):
        keeper.begin(running.course, history)
    total, done = epochs * len(data), len(history.steps)
    bar = tqdm(running, total=total, initial=done, disable=not progress, unit="step", dynamic_ncols=True)
    file = checkpoint if folder is None else None
    with nullcontext() if keeper is None else keeper.telling():
        for step in bar:
            history.steps.append(step)
            if step.step % 10 == 0:
                bar.set_postfix_str(_describe(step))
            if (step.step + 1) % len(data) == 0:
                with running.stream.training():
                    _end_epoch(q, data, history, held_out, file)
            if keeper is not None and keeper.is_time():
                with running.stream.training():
                    keeper.save()
        if keeper is not None:
            with running.stream.training():
                keeper.finish()
    warn_unsettled(history)
    return history


def _describe(step: Step) -> str:
    limit = "" if step.limit is None else f"/{step.limit:.3g}"
    return f"{step.phase} loss {step.loss:.4f}, E[cost] {step.percent:.3g}{limit} %, multiplier {step.multiplier:.3g}"


def _end_epoch(q: Quantized, data: Batches, history: History, held_out: Batches | None, checkpoint: Any) -> None:
    if held_out is not None or checkpoint is not None:
        estimate_before_use(q, data)
    if held_out is not None and history.steps:
        history.validation.append({"epoch": history.steps[-1].epoch, **validate(q, held_out)})
    if checkpoint is not None:
        q.save(checkpoint)


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
    rule: Rule = DUAL_ASCENT,
    prior: Energy | None = None,
    validation: Iterable[Any] | None = None,
    evaluations: int = 100,
    trials: int = 4,
    seed: int | None = None,
    progress: bool = False,
) -> StreamIterator[Step]:
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
        rounding: whether codes are rounded while the network is tuned at fixed widths, for a better mode. False draws
            them there too, so that the posterior of the codes is fitted on, for draws and `probq.ensemble`.
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
        rule: enforces the budget while widths are learned, one of `probq.rules`.
        prior: an energy for one example in nats, of a criterion; for other units see `Energy.to_nats`. It takes the
            place of the priors of widths, and counts as much as the data does: `P(widths) proportional to
            exp(-N energy / temperature)`; `0.1 * energy` counts a tenth. Under a budget the search starts at the
            widths of `probq.allocate`.
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
    total = epochs * len(data)
    small = draws is None and is_small(q, temperature, rule)
    if search is None:
        search = 1.0 if small and not several else SEARCH_SHARE
    searching = 0 if fixed_by_decision(q) else max(1, round(search * total))
    rates = rates or (small_rates(total) if small and searching == total else Rates())
    trainer = Trainer(data, several, rule, optimizer, rates, draws or (SMALL_DRAWS if small else 1), rounding)
    refinement = None
    if validation is not None and evaluations:
        refinement = Refinement(_as_batches(validation, q, "validation data"), evaluations, trials, progress)
    course = Course([data.source] if refinement is None else [data.source, refinement.validation.source])
    return FitSteps(run_phases(q, trainer, refinement, searching, total, course), stream, course)


class FitSteps(StreamIterator[Step]):
    """These are the steps of a fit, and its course."""

    def __init__(self, items: Iterator[Step], stream: Stream, course: Course) -> None:
        super().__init__(items, stream)
        self.course = course


def _as_batches(batches: Iterable[Any], q: Quantized, name: str) -> Batches:
    return batches if isinstance(batches, Batches) else Batches(batches, q.device, name)


def _defaults() -> dict[str, Any]:
    parameters = inspect.signature(steps).parameters.items()
    return {name: p.default for name, p in parameters if p.kind is p.KEYWORD_ONLY and name not in OWN}


def _check_options(options: Mapping[str, Any]) -> None:
    known = _defaults()
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ProbqError(f"fit has no option {unknown[0]!r}; besides its own arguments it takes {', '.join(known)}")
