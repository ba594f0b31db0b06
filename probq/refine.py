"""Refinement of a decision: networks around the most probable one, accepted by their measured loss."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from probq.assignment import Assignment
from probq.batches import Batches
from probq.budget import Budgets, budgets
from probq.checks import check_number
from probq.decide import decided, mode, shape_bits, under, with_widths
from probq.limited import Limited
from probq.measure import ValidationLoss
from probq.neighbours import Space, State, StateCost
from probq.quantized import Quantized
from probq.quantizer import Quantizer
from probq.search import Measure, Search
from probq.solve import most_probable_first

STARTS = 10


def refined(
    q: Quantized,
    budget: Budgets,
    validation: Iterable[Any],
    batches: Iterable[Any] | None,
    evaluations: int,
    examples: int | None,
    progress: bool,
) -> Assignment:
    """What `probq.decide` does; see there."""
    check_number("evaluations", evaluations, 1)
    if examples is not None:
        check_number("examples", examples, 1)
    budget = budget or q.budget
    if decided(q):
        return mode(q, budget)
    search = None
    try:
        training = None if batches is None else Batches(batches, q.device)
        loss = ValidationLoss(q, Batches(validation, q.device, "validation data"), training, examples)
        search = search_of(q, budget, loss, evaluations)
        search.run(progress)
    except KeyboardInterrupt:
        measured = 0 if search is None else len(search.losses)
        warnings.warn(
            f"interrupted after {measured} of {evaluations} evaluations; this is the best decision so far",
            UserWarning,
            stacklevel=3,
        )
    if search is None:  # nothing was measured, not even the data read
        return mode(q, budget)
    widths = search.space.widths(search.best)
    loss.settle(q, widths)
    return replace(with_widths(q, widths, budget), loss=search.losses.get(search.best))


def search_of(q: Quantized, budget: Budgets, measure: Measure, evaluations: int) -> Search:
    """A search that starts from the most probable widths of a network, ready to run.

    Args:
        q: the network.
        budget: the limit, several, or None.
        measure: the loss of given widths.
        evaluations: greatest number of losses to measure.

    Raises:
        ProbqError: if the budget is below the cheapest reachable cost.
    """
    starts = _starts(under(q, budget))
    names, options, log_probs = [], [], []
    for name, quantizer in q.named_sites():
        rungs = _options(quantizer, starts[0][name])
        of_gates = quantizer.widths().log_probs.detach().double().cpu().numpy().reshape(-1, len(quantizer.ladder))
        names.append(name)
        options.append(tuple(shape_bits(quantizer, np.asarray(quantizer.ladder.bits)[r]) for r in rungs))
        log_probs.append(np.array([of_gates[np.arange(len(r)), r].sum() for r in rungs]))
    space = Space(tuple(names), tuple(options), tuple(log_probs), (), q.sites)
    limits = tuple((StateCost(q.layers, b.cost, space), b.absolute(q.layers)) for b in budgets(budget))
    space = replace(space, limits=limits)
    return Search(space, [_state(space, widths) for widths in starts], measure, evaluations)


def _starts(discrete: Limited) -> list[dict[str, Any]]:
    """The most probable widths within the limits, the best first; only the best where tensors have many gates."""
    problem = discrete.problem
    best, _ = discrete.most_probable()
    if any((group.counts > 1).any() for group in problem.groups):
        return [problem.widths(best)]
    inside = filter(discrete.keeps, islice(most_probable_first(problem, discrete.limits), 2 * STARTS))
    return [problem.widths(c) for c in islice(inside, STARTS)] or [problem.widths(best)]


def _options(quantizer: Quantizer, best: Any) -> list[np.ndarray]:
    """Rungs of the gates `[G]` in every option: every rung where all share one, else shifts of the best ones."""
    count = len(quantizer.ladder)
    if not quantizer.gates:
        return [np.array([k]) for k in range(count)]
    rungs = np.searchsorted(quantizer.ladder.bits, np.asarray(best).reshape(-1))
    shifted = [np.clip(rungs + by, 0, count - 1) for by in range(1 - count, count)]
    return [r for k, r in enumerate(shifted) if k == 0 or not np.array_equal(r, shifted[k - 1])]


def _state(space: Space, widths: Mapping[str, Any]) -> State:
    return tuple(
        next(k for k, own in enumerate(options) if np.array_equal(np.ravel(own), np.ravel(widths[name])))
        for name, options in zip(space.names, space.options, strict=True)
    )
