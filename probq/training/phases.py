"""A fit from inside: the search for widths, trials of the best ones, and the tuning of what was decided."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from probq.cost.budget import Budgets
from probq.decisions.widths import fix_widths, fixed_by_decision
from probq.network.quantized.quantized import Quantized
from probq.rules import Rule
from probq.training.ptq.batch_norm import estimate_before_use, has_norms
from probq.training.refinement.trials import run_trials, steps_per_trial
from probq.training.svi.history import Step
from probq.training.svi.learning_rates import Rates, parameter_groups
from probq.training.svi.loop import Loop
from probq.utils.batches import Batches


def run_phases(
    q: Quantized,
    data: Batches,
    budget: Budgets,
    rule: Rule,
    optimizer: Any,
    rates: Rates,
    searching: int,
    total: int,
    choices: Callable[[], Sequence[Mapping[str, Any]]] | None = None,
    loss: Callable[[Quantized], float] | None = None,
    rounding: bool = True,
    draws: int = 1,
) -> Iterator[Step]:
    """All steps of a fit: the search for widths, then the tuning of what was decided.

    Args:
        q: the network, calibrated and with a likelihood.
        data: the batches.
        budget: limit on the expected cost, several, or None.
        rule: enforces it in the search.
        optimizer: makes an optimizer of parameter groups.
        rates: learning rates.
        searching: number of steps that learn widths.
        total: number of steps.
        choices: gives the widths that may be tuned for, the most promising first; by default those of the mode.
        loss: of a tuned network, by which trials choose among several.
        rounding: whether codes are rounded in the tuning, or drawn.
        draws: of widths and codes in each step; from 2 on, their laws have the gradient of `leave_one_out`.
    """
    begin = partial(Loop, data=data, budget=budget, rule=rule, draws=draws)
    tune = partial(_tuned, optimizer=optimizer, rates=rates, rounding=rounding)
    loop, fixed, first = begin(q), fixed_by_decision(q), searching
    try:
        q.train()
        if searching:
            for _, quantizer in q.named_quantizers():
                quantizer.tuned = None
            moving = optimizer(parameter_groups(q, rates, searching))
            falling = torch.optim.lr_scheduler.CosineAnnealingLR(moving, searching) if draws > 1 else None
            yield from loop.search(moving, searching, falling)
        if searching < total:
            if not fixed:
                found = [q.mode(budget, measured=False).widths] if choices is None else choices()
                each = steps_per_trial(total - searching, len(found))
                if loss is not None and each:
                    first += each * len(found)
                    yield from run_trials(q, found, range(searching, first), begin, tune, loss)
                else:
                    fix_widths(q, found[0])
            yield from tune(loop, range(first, total))
    except (KeyboardInterrupt, GeneratorExit):
        estimate_before_use(q, data)
        raise
    finally:
        _release(q, fixed)


def _tuned(loop: Loop, numbers: range, optimizer: Any, rates: Rates, rounding: bool) -> Iterator[Step]:
    """Steps at fixed widths, with a cosine schedule over them."""
    q = loop.q
    if _folds_late(q):
        q.folded = False
    else:
        loop.fold()
    for _, quantizer in q.named_quantizers():
        quantizer.tuned = None if quantizer.fixed is None else quantizer.fixed.clone()
    q.rounding = rounding
    q.train()
    moving = optimizer(parameter_groups(q, rates, None))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(moving, len(numbers))
    yield from loop.tune(moving, cosine, numbers)


def _folds_late(q: Quantized) -> bool:
    """Whether batch normalisation can be folded when all is learned: integer multipliers follow its gains, codes stay.

    Scales in powers of two do not follow, so that the folded network has to be trained.
    """
    folded = [layer.weight for layer in q.layers if layer.norm]
    return bool(folded) and has_norms(q) and all(q.weights[name].multipliers > 1 for name in folded)


def _release(q: Quantized, fixed: bool) -> None:
    q.rounding, q.folded = False, fixed
    if not fixed:
        for _, quantizer in q.named_quantizers():
            quantizer.fixed = None
    q.eval()
