"""The widths that a fit tunes for are measured on held-out data, and where there is time tried."""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from probq.decisions.widths import fix_widths, fixed_widths, release_widths
from probq.evaluation.diagnostics.held_out import validate
from probq.network.quantized.quantized import Quantized
from probq.training.refinement.candidates import find_candidates
from probq.training.refinement.decide import drawn_choices, make_search
from probq.training.refinement.evidence.evidence import take_evidence, with_trials
from probq.training.refinement.evidence.measurements import Measurements
from probq.training.refinement.evidence.opinions import Experts
from probq.training.refinement.evidence.space import WidthSpace
from probq.training.refinement.evidence.validation_loss import ValidationLoss
from probq.training.refinement.experts.criteria import ask_criteria
from probq.training.refinement.experts.drawn_widths import train_at_drawn_widths
from probq.training.refinement.favourites import measure_favourites
from probq.training.refinement.trials import Trials, steps_per_trial
from probq.training.svi.course import Course
from probq.training.svi.history import Step
from probq.training.svi.learning_rates import Rates
from probq.training.svi.trainer import Trainer
from probq.utils.batches import Batches, first_examples
from probq.utils.errors import ProbqError

EXAMPLES = 512  # of the training data, for experts and weights that serve all choices
SPENDING = 400  # choices drawn within the limits, of which those that spend them give opinions one spread


@dataclass(frozen=True)
class Refinement:
    """A refinement decides between a search and its tuning by held-out loss, which the law of widths then knows.

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
        examples = [(x, y) for x, y in first_examples(trainer.data, EXAMPLES, q.device, "fit") if y is not None]
        own = q if tried else self._serving_all(q, examples, trainer.updates.rates, len(numbers))  # all is measured
        loss, agree = ValidationLoss(own, self.validation, trainer.data, None), trainer.processes.agree
        search = make_search(q, q.budget, lambda widths: agree(loss(widths)), self.evaluations)
        search.record, search.pause = measured.losses, course.pause
        if measured.opinions is None:
            ask = partial(ask_criteria, own, examples, search.space, self.evaluations, self.progress)
            measured.opinions = trainer.processes.first(ask)
        experts = self._experts(q, search.space, measured)
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

    def _serving_all(self, q: Quantized, examples: Sequence[tuple[Any, Tensor]], rates: Rates, left: int) -> Quantized:
        """Return a copy whose weights serve all choices, trained for no more steps than are left to the fit.

        It is the network itself where that cannot be done, or channels or weights have widths of their own.
        """
        if any(quantizer.gates for _, quantizer in q.named_quantizers()):
            return q
        drawn = drawn_choices(q, q.budget, min(self.evaluations, left))
        try:
            return train_at_drawn_widths(q, examples, drawn, rates, self.progress)
        except ProbqError as error:
            warnings.warn(f"widths are measured with the weights of the search: {error}", stacklevel=2)
            return q

    def _experts(self, q: Quantized, space: WidthSpace, measured: Measurements) -> Experts | None:
        """Return those who have an opinion, with choices that spend the budget, or None."""
        if not measured.opinions:
            return None
        return Experts(
            measured.opinions, space.spending([space.state(w) for w in drawn_choices(q, q.budget, SPENDING)])
        )

    def loss(self, q: Quantized) -> float:
        """The held-out loss of a network for one example in nats; infinite where it is not a number."""
        loss = validate(q, self.validation)["loss"]
        return math.inf if math.isnan(loss) else loss
