"""Trials tune each of the best few choices of widths for a while, since tuning changes their order."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from probq.decisions.widths import fix_widths
from probq.network.quantized.quantized import Quantized
from probq.training.svi.history import Step
from probq.training.svi.trainer import Trainer

SHARE = 0.25  # of the tuning, for all trials together
FEWEST = 200  # steps of one trial; in fewer, chance decides


def steps_per_trial(tuning: int, number: int) -> int:
    """Steps of each of a number of trials, or 0: they are taken out of the tuning, and would be too short."""
    each = round(SHARE * tuning / number) if number > 1 else 0
    return each if each >= FEWEST else 0


def run_trials(
    q: Quantized,
    candidates: Sequence[Mapping[str, Any]],
    numbers: range,
    trainer: Trainer,
    loss: Callable[[Quantized], float],
) -> Generator[Step, None, list[float]]:
    """Steps of all trials, one after the other on copies of a network, which then is the one of least loss.

    All see the same batches in the same order, as far as torch's global random state decides it. An interrupt leaves
    the network as it was.

    Args:
        q: the network as the search left it; afterwards the best copy, its widths fixed.
        candidates: choices of widths, the most promising first.
        numbers: of the steps; as many for each choice.
        trainer: trains every copy.
        loss: of a tuned network.

    Returns:
        The loss of each candidate.
    """
    state, each = torch.get_rng_state(), len(numbers) // len(candidates)
    least, chosen, best, losses = math.inf, candidates[0], q, []
    for place, widths in enumerate(candidates):
        torch.set_rng_state(state)
        tuned = copy.deepcopy(q)
        fix_widths(tuned, widths)
        for step in trainer.tune(trainer.loop(tuned), numbers[place * each : (place + 1) * each]):
            yield replace(step, phase="trial")
        found = loss(tuned)
        losses.append(found)
        if place == 0 or found < least:
            least, chosen, best = found, widths, tuned
    fix_widths(q, chosen)
    q.load_state_dict(best.state_dict(), strict=False)
    q.folded = best.folded
    return losses
