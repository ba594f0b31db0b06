"""The phases of a fit: the search for widths, their refinement, and the tuning of what was decided."""

from __future__ import annotations

from collections.abc import Iterator

from probq.decisions.widths import fix_widths, fixed_by_decision, fixed_widths, release_widths
from probq.network.program.constant_outputs import warn_constant
from probq.network.program.originals import Originals
from probq.network.quantized.quantized import Quantized
from probq.training.ptq.batch_norm import estimate_before_use
from probq.training.refinement.refinement import Refinement
from probq.training.svi.history import Step
from probq.training.svi.trainer import Trainer


def run_phases(
    q: Quantized, trainer: Trainer, refinement: Refinement | None, searching: int, total: int
) -> Iterator[Step]:
    """Yield all steps of a fit, in order.

    Args:
        q: the network, with scales and a likelihood.
        trainer: trains it.
        refinement: decides which widths to tune for; by default those of the mode.
        searching: number of steps that learn widths.
        total: number of steps.
    """
    q.originals = Originals()  # what is trained from here on is the float network
    loop, fixed, left = trainer.loop(q), fixed_by_decision(q), range(searching, total)
    try:
        q.train()
        if searching:
            yield from trainer.search(loop, searching)
        if left:
            if not fixed and refinement is not None:
                left = yield from refinement.run(q, trainer, left)
            elif not fixed:
                fix_widths(q, q.mode(measured=False).widths)
            if not fixed:
                warn_constant(q, fixed_widths(q))
            yield from trainer.tune(loop, left)
    except (KeyboardInterrupt, GeneratorExit):
        estimate_before_use(q, trainer.data)
        raise
    finally:
        _release(q, fixed)


def _release(q: Quantized, fixed: bool) -> None:
    q.rounding, q.folded = False, fixed
    if not fixed:
        release_widths(q)
    q.eval()
