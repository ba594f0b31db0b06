"""The widths that a fit tunes for are measured on held-out data, and where there is time tried."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial

from probq.decisions.widths import fix_widths, fixed_widths, release_widths
from probq.evaluation.diagnostics.held_out import validate
from probq.network.quantized.quantized import Quantized
from probq.training.refinement.candidates import find_candidates
from probq.training.refinement.decide import make_search, spending_states
from probq.training.refinement.evidence import take_evidence, with_trials
from probq.training.refinement.experts import EXAMPLES, Experts, ask_experts
from probq.training.refinement.favourites import measure_favourites
from probq.training.refinement.measurements import Measurements
from probq.training.refinement.space import WidthSpace
from probq.training.refinement.trials import Trials, steps_per_trial
from probq.training.refinement.validation_loss import ValidationLoss
from probq.training.svi.course import Course
from probq.training.svi.history import Step
from probq.training.svi.trainer import Trainer
from probq.utils.batches import Batches, first_examples


@dataclass(frozen=True)
class Refinement:
    """A refinement decides between a search and its tuning, by loss on held-out data, which the gates' laws then know.

    Args:
        validation: held-out batches.
        evaluations: greatest number of networks measured.
        trials: number of choices that are tuned for a while, if each gets enough steps.
        progress: show a progress bar while networks are measured.
    """

    validation: Batches
    evaluations: int
    trials: int
    progress: bool

    def run(self, q: Quantized, trainer: Trainer, numbers: range, course: Course) -> Generator[Step, None, range]:
        """Fix the widths of a network.

        Args:
            q: the network as the search left it; afterwards with fixed widths, and tuned where trials were made.
            trainer: trains in trials.
            numbers: steps that are left for trials and tuning.
            course: of the fit.

        Yields:
            The steps of trials.

        Returns:
            The numbers of the steps that are left for the tuning.
        """
        measured, tried = Measurements(), course.kept("trial")
        if tried is None:
            course.enter("decide", numbers, {"measured": measured}, idle=True)
        else:
            measured.load_state_dict(tried["measured"])
        loss, agree = ValidationLoss(q, self.validation, trainer.data, None), trainer.processes.agree
        search = make_search(q, q.budget, lambda widths: agree(loss(widths)), self.evaluations)
        search.record, search.pause = measured.losses, course.pause
        experts = self._experts(q, trainer, search.space, measured)
        course.pause()
        search.run(self.progress)
        measure_favourites(q, search, q.budget, self.progress, experts)
        wanted = self.trials if steps_per_trial(len(numbers), self.trials) else 1  # more would be measured in vain
        found = find_candidates(q, search, wanted, experts)
        taken, losses = steps_per_trial(len(numbers), len(found)) * len(found), dict(search.losses)
        if taken:
            tried_widths = [search.space.widths(state) for state in found]
            trials = Trials(q, tried_widths, lambda tuned: agree(self.loss(tuned)), course)
            after = yield from trials.run(trainer, numbers[:taken], {"measured": measured})
            losses = with_trials(losses, dict(zip(found, after, strict=True)))
        else:
            fix_widths(q, search.space.widths(found[0]))
        chosen = fixed_widths(q)
        release_widths(q)
        take_evidence(q, search.space, losses, q.budget, experts)
        fix_widths(q, chosen)
        return numbers[taken:]

    def _experts(self, q: Quantized, trainer: Trainer, space: WidthSpace, measured: Measurements) -> Experts | None:
        """Return the experts, who are asked but once, by the first process. The data is read in any case."""
        examples = first_examples(trainer.data, EXAMPLES, q.device, "fit")
        if measured.opinions is None:
            ask = partial(ask_experts, q, examples, space, self.evaluations, self.progress)
            measured.opinions = trainer.processes.first(ask)
        return Experts(measured.opinions, spending_states(q, space, q.budget)) if measured.opinions else None

    def loss(self, q: Quantized) -> float:
        """The held-out loss of a network for one example in nats; infinite where it is not a number."""
        loss = validate(q, self.validation)["loss"]
        return math.inf if math.isnan(loss) else loss
