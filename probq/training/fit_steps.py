"""The steps of a fit are in the hands of the user here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from probq.cost.budget import Budgets, budgets, one_or_several
from probq.decisions.widths import fixed_by_decision
from probq.decisions.within_budget import check_budget_reachable
from probq.network.program.program import check_posterior
from probq.network.quantized.quantized import Quantized
from probq.training.check_options import check_device
from probq.training.distillation import as_teacher
from probq.training.energy_prior import take_prior
from probq.training.fit_options import FitOptions, options_of, updates_of
from probq.training.phases import run_phases
from probq.training.preparation import prepare
from probq.training.processes.alone import Processes
from probq.training.processes.fabric import as_processes
from probq.training.refinement.refinement import Refinement
from probq.training.small_posteriors import SMALL_DRAWS, is_small, small_rates
from probq.training.step_memory import check_memory
from probq.training.svi.course import Course
from probq.training.svi.history import Step
from probq.training.svi.learning_rates import Rates
from probq.training.svi.loop import steps_per_epoch
from probq.training.svi.trainer import Trainer
from probq.utils.arguments import check_number
from probq.utils.batches import Batches
from probq.utils.random_stream import Stream, StreamIterator

SEARCH_SHARE = 0.6  # of the steps


def steps(
    q: Quantized,
    batches: Iterable[Any],
    budget: Budgets = None,
    epochs: int = 10,
    *,
    validation: Iterable[Any] | None = None,
    progress: bool = False,
    **options: Any,
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
        validation: held-out batches; if given, `probq.decide` measures on them which widths to tune for.
        progress: show a progress bar while networks are measured.
        options: those of `FitOptions`.

    Returns:
        An iterator of a record of each step, after the parameters were moved; `close()` ends the fit where it stands.

    Raises:
        ProbqError: as in `fit`; what can be checked is checked before the first step.
    """
    check_posterior(q, "steps")
    check_number("epochs", epochs, 1)
    chosen = options_of("steps", options)
    processes = as_processes(chosen.fabric)
    processes.take(q)
    check_device(q.device)
    data = processes.batches(batches, q.device, "data")
    check_budget_reachable(q, budget)
    stream = Stream(processes.seed(chosen.seed))
    with stream.training():
        processes.together(partial(prepare, q, data, chosen.likelihood, chosen.temperature))
        if chosen.prior is not None:
            take_prior(q, chosen.prior, budget, data.size)
        processes.align(q)
    processes.together(partial(check_memory, q, data))
    q.budget = one_or_several(budget) if budgets(budget) else q.budget
    total = epochs * steps_per_epoch(data, chosen.accumulate)
    trainer, searching = _trainer(q, data, budget, total, chosen, processes)
    refinement = None
    if validation is not None and chosen.evaluations:
        held_out = validation if isinstance(validation, Batches) else Batches(validation, q.device, "validation data")
        refinement = Refinement(held_out, chosen.evaluations, chosen.trials, progress and processes.is_first)
    course = Course([data.source] if refinement is None else [data.source, refinement.validation.source])
    course.lasting = {} if trainer.lessons is None else {"lessons": trainer.lessons}
    last = "search" if searching == total else "tune"
    return FitSteps(run_phases(q, trainer, refinement, searching, total, course), stream, course, last)


def _trainer(
    q: Quantized, data: Batches, budget: Budgets, total: int, chosen: FitOptions, processes: Processes
) -> tuple[Trainer, int]:
    """Return what trains the network, and the number of steps that learn widths."""
    several = budgets(budget)
    small = chosen.draws is None and is_small(q, chosen.temperature, chosen.rule)
    search = chosen.search
    if search is None:
        search = 1.0 if small and not several else SEARCH_SHARE
    searching = 0 if fixed_by_decision(q) else max(1, round(search * total))
    updates = updates_of(chosen, chosen.rates or (small_rates(total) if small and searching == total else Rates()))
    updates.check(q, total)
    taught_by = as_teacher(chosen.teacher)
    lessons = None if taught_by is None else taught_by.begin(q)
    if lessons is not None and processes.count > 1:
        lessons.load_state_dict(processes.agree(lessons.state_dict()))
    trainer = Trainer(
        data=data,
        budget=several,
        rule=chosen.rule,
        updates=updates,
        draws=chosen.draws or (SMALL_DRAWS if small else 1),
        rounding=chosen.rounding,
        lessons=lessons,
        accumulate=chosen.accumulate,
        tunes=searching < total,
        processes=processes,
    )
    return trainer, searching


class FitSteps(StreamIterator[Step]):
    """These are the steps of a fit, its course, and the name of its last phase."""

    def __init__(self, items: Iterator[Step], stream: Stream, course: Course, last: str) -> None:
        super().__init__(items, stream)
        self.course, self.last = course, last

    def stop(self) -> None:
        """End the fit where it stands, as one that is finished."""
        self.close()
        self.course.enter("finished", range(self.course.next, self.course.next), {})
