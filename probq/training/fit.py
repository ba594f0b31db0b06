"""Fitting: stochastic variational inference under a budget, then fine-tuning of what was decided."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

from tqdm import tqdm

from probq.cost.budget import Budgets
from probq.network.program.program import check_posterior
from probq.network.quantized.quantized import Quantized
from probq.training.checkpoints.call import describe_call
from probq.training.checkpoints.folder import checkpoint_folder
from probq.training.checkpoints.keeper import Keeper
from probq.training.epoch_end import EpochEnd
from probq.training.fit_options import options_of, told_options
from probq.training.fit_steps import FitSteps, steps
from probq.training.processes.fabric import as_processes
from probq.training.svi.bound_trend import warn_unsettled
from probq.training.svi.early_stopping import EarlyStopping
from probq.training.svi.history import History, Step
from probq.training.svi.loop import steps_per_epoch
from probq.utils.batches import Batches


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
            returns them. They are measured with the weights of a copy that is trained for up to a hundred steps at
            drawn widths. The law of the widths then knows what was measured, and what `probq.criteria.search` and
            `limpq` say at these weights; `q.energy` has it before any limit. `evaluations=0` takes the most probable
            widths, and leaves the law as the search learned it.
        progress: show a progress bar.
        checkpoint: a folder, which is a path without a suffix, for checkpoints of all that the fit depends on: the same
            call made again goes on where it was stopped or killed, and its result is the same to the last bit on the
            same machine. Where the fit was finished, it returns at once. Or a file, such as "posterior.safetensors",
            where the posterior alone is saved after every epoch.
        every: number of steps between two checkpoints in a folder; by default those of an epoch. The last two are kept.
        patience: number of epochs in a row without a lower loss on `validation`, after which the tuning stops (or the
            search, in a fit that is nothing else). With it, the fit ends at the state of least loss among those that
            keep the budget; without it, at the last state. The bound is not touched.
        options: those of `FitOptions`. A `seed` makes the fit reproducible; the global random state is restored
            afterwards.

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
    chosen = options_of("fit", options)
    processes = as_processes(chosen.fabric)
    processes.take(q)
    folder = processes.first(lambda: checkpoint_folder(checkpoint, every))
    held_out = Batches(validation, q.device, "validation data") if validation is not None else None
    data = processes.batches(batches, q.device, "data")
    stopping = EarlyStopping(q, patience, budget, held_out is not None)
    history = History(settings={"epochs": epochs, "budget": budget, "seed": chosen.seed, **options})
    history.settings.pop("fabric", None)
    each, keeper = steps_per_epoch(data, chosen.accumulate), None
    if folder is not None:
        call = {"budget": budget, "epochs": epochs, "patience": patience, **told_options(chosen)}
        keeper = Keeper(folder, every or each, q, describe_call(data, held_out, q, call), processes)
    file = checkpoint if folder is None else None
    epoch_end = EpochEnd(q, data, held_out, file, processes, stopping)
    shown = progress and processes.is_first
    with nullcontext() if keeper is None else keeper.telling():
        own = {**options, "fabric": processes}
        running = steps(q, data, budget, epochs, validation=held_out, progress=shown, **own)
        if keeper is not None:
            keeper.begin(running.course, history, stopping)
        for step in _shown(_until_over(running, stopping), epochs * each, len(history.steps), shown):
            history.steps.append(step)
            if (step.step + 1) % each == 0:
                with running.stream.training(), running.course.averaged():
                    epoch_end(history, running.last)
            if keeper is not None and keeper.is_time():
                with running.stream.training():
                    keeper.save()
        epoch_end.of_the_last()
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


def _shown(running: Iterator[Step], total: int, done: int, shown: bool) -> Iterator[Step]:
    """Yield the steps with a bar that counts them."""
    bar = tqdm(running, total=total, initial=done, disable=not shown, unit="step", dynamic_ncols=True)
    for step in bar:
        yield step
        if step.step % 10 == 0:
            bar.set_postfix_str(_describe(step))


def _describe(step: Step) -> str:
    limit = "" if step.limit is None else f"/{step.limit:.3g}"
    return f"{step.phase} loss {step.loss:.4f}, E[cost] {step.percent:.3g}{limit} %, multiplier {step.multiplier:.3g}"
