"""Fitting: stochastic variational inference under a budget, then fine-tuning of what was decided."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

from tqdm import tqdm

from probq.cost.budget import Budgets
from probq.evaluation.diagnostics.held_out import validate
from probq.network.program.program import check_posterior
from probq.network.quantized.quantized import Quantized
from probq.training.checkpoints.call import describe_call
from probq.training.checkpoints.folder import checkpoint_folder
from probq.training.checkpoints.keeper import Keeper
from probq.training.fit_steps import FitSteps, steps
from probq.training.ptq.batch_norm import estimate_before_use
from probq.training.svi.bound_trend import warn_unsettled
from probq.training.svi.early_stopping import EarlyStopping
from probq.training.svi.history import History, Step
from probq.training.svi.loop import steps_per_epoch
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError

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
    patience: int | None = None,
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
        patience: number of epochs in a row without a lower loss on `validation`, after which the tuning stops (or the
            search, in a fit that is nothing else). With it, the fit ends at the state of least loss among those that
            keep the budget; without it, at the last state. The bound is not touched.
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
    data, stopping = Batches(batches, q.device), EarlyStopping(q, patience, budget, held_out is not None)
    chosen = {**_defaults(), "budget": budget, "epochs": epochs, "patience": patience, "seed": seed, **options}
    each = steps_per_epoch(data, chosen["accumulate"])
    keeper = None if folder is None else Keeper(folder, every or each, q, describe_call(data, held_out, q, chosen))
    running = steps(q, data, budget, epochs, seed=seed, validation=held_out, progress=progress, **options)
    if keeper is not None:
        keeper.begin(running.course, history, stopping)
    total, done = epochs * each, len(history.steps)
    items = _until_over(running, stopping)
    bar = tqdm(items, total=total, initial=done, disable=not progress, unit="step", dynamic_ncols=True)
    file = checkpoint if folder is None else None
    with nullcontext() if keeper is None else keeper.telling():
        for step in bar:
            history.steps.append(step)
            if step.step % 10 == 0:
                bar.set_postfix_str(_describe(step))
            if (step.step + 1) % each == 0:
                with running.stream.training(), running.course.averaged():
                    _end_epoch(q, data, history, held_out, file)
                    if held_out is not None:
                        stopping.take(step, running.last, history.validation[-1]["loss"])
            if keeper is not None and keeper.is_time():
                with running.stream.training():
                    keeper.save()
        if stopping.restore() and file is not None:
            q.save(file)
        if keeper is not None:
            with running.stream.training():
                keeper.finish()
    warn_unsettled(history)
    return history


def _until_over(running: FitSteps, stopping: EarlyStopping) -> Iterator[Step]:
    for step in running:
        yield step
        if stopping.is_over:
            running.stop()
            return


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


def _defaults() -> dict[str, Any]:
    parameters = inspect.signature(steps).parameters.items()
    return {name: p.default for name, p in parameters if p.kind is p.KEYWORD_ONLY and name not in OWN}


def _check_options(options: Mapping[str, Any]) -> None:
    known = _defaults()
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ProbqError(f"fit has no option {unknown[0]!r}; besides its own arguments it takes {', '.join(known)}")
