"""The phases of a fit: the search for widths, their refinement, and the tuning of what was decided."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from probq.decisions.widths import fix_widths, fixed_by_decision, fixed_widths, release_widths
from probq.network.program.constant_outputs import warn_constant
from probq.network.quantized.quantized import Quantized
from probq.training.ptq.batch_norm import estimate_before_use
from probq.training.refinement.refinement import Refinement
from probq.training.svi.course import Course
from probq.training.svi.history import Step
from probq.training.svi.trainer import Trainer, make_codes_certain


def run_phases(
    q: Quantized, trainer: Trainer, refinement: Refinement | None, searching: int, total: int, course: Course
) -> Iterator[Step]:
    """Yield all steps of a fit, in order.

    Args:
        q: the network, with scales and a likelihood.
        trainer: trains it.
        refinement: decides which widths to tune for; by default those of the mode.
        searching: number of steps that learn widths.
        total: number of steps.
        course: where the fit stands, and where it begins.
    """
    loop, fixed, left = trainer.loop(q), fixed_by_decision(q), range(searching, total)
    course.begin(q, loop.batches)
    try:
        q.train()
        if searching and not course.past("search"):
            q.energy = None  # what was measured at other weights
            yield from trainer.search(loop, searching, course)
        if left and not course.past("tune"):
            if not fixed and not course.past("trial"):
                left = yield from _decide(q, trainer, refinement, left, course)
            yield from trainer.tune(loop, course.numbers_of("tune", left), course)
        course.enter("finished", range(total, total), {})
        make_codes_certain(q)
    except (KeyboardInterrupt, GeneratorExit):
        loop.stop()
        make_codes_certain(q)
        estimate_before_use(q, trainer.data)
        raise
    finally:
        _release(q, fixed)


def _decide(
    q: Quantized, trainer: Trainer, refinement: Refinement | None, left: range, course: Course
) -> Generator[Step, None, range]:
    """Fix the widths, and return the numbers of the steps that are left for their tuning."""
    if refinement is not None:
        left = yield from refinement.run(q, trainer, left, course)
    else:
        fix_widths(q, q.mode(measured=False).widths)
    trainer.processes.align(q)
    warn_constant(q, fixed_widths(q))
    return left


def _release(q: Quantized, fixed: bool) -> None:
    q.rounding, q.folded = False, fixed
    if not fixed:
        release_widths(q)
    q.eval()
