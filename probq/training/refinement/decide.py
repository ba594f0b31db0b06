"""A decision is refined by networks around the most probable one, accepted by their measured loss."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from probq.cost.budget import Budgets, budgets
from probq.decisions.allocation.most_probable import most_probable_first
from probq.decisions.assignment import Assignment
from probq.decisions.constrained_posterior import ConstrainedPosterior, constrain, constrained_posterior
from probq.decisions.held_gates import equal_laws, is_held
from probq.decisions.widths import format_bits, format_widths, widths_are_fixed
from probq.decisions.within_budget import mode, with_widths
from probq.network.program.constant_outputs import warn_constant
from probq.network.program.program import check_posterior
from probq.network.quantized.quantized import Quantized
from probq.network.quantizers.base import Quantizer
from probq.training.refinement.best_first import BestFirstSearch, Measure
from probq.training.refinement.evidence.evidence import take_evidence
from probq.training.refinement.evidence.space import StateCost, WidthSpace
from probq.training.refinement.evidence.validation_loss import ValidationLoss
from probq.training.refinement.favourites import measure_favourites
from probq.utils.arguments import check_number
from probq.utils.batches import Batches

STARTS = 10
SURVEY, FAVOURITES = 0.4, 0.2  # of the evaluations


def decide(
    q: Quantized,
    budget: Budgets = None,
    validation: Iterable[Any] = (),
    *,
    batches: Iterable[Any] | None = None,
    evaluations: int = 100,
    examples: int | None = None,
    progress: bool = True,
) -> Assignment:
    """Return the decision that spends the budget, by measured loss among choices around the most probable one.

    The loss is the likelihood's mean negative log-probability of one example, with every code at its mode. Where no
    more choices keep the budget than may be measured, all are, and the result is the best of all. Otherwise the most
    probable ten come first, then two in five of the evaluations survey choices from everywhere within the budget, drawn
    uniformly, then come steps from the best so far: one quantizer a rung up or down, or a rung up paid for by
    the fewest rungs down of another one (among more than 64 quantizers, of the few that give up least
    log-probability). The order follows a Gaussian process on what was measured, whose mean is the
    posterior; it ends when no step helps, or four in five of the evaluations are spent. Then the choice that the
    measured losses make the most probable is measured, again and again, until it is a known one. Where channels or
    weights have widths of their own, a step moves all of them. So local steps can miss a better choice that lies two
    steps away.

    What was measured then updates the law of the widths in `q`: the log-probability of a choice falls with its loss, as
    far as a sum over quantizers can tell, in units of what that sum leaves unexplained. `q.energy` is minus that
    log-probability, whatever choices cost. Where channels or weights have widths of their own, their laws stay.

    Args:
        q: from `quantize` or `fit`. Fixed widths are returned as they are.
        budget: the limit, or a list of limits, always kept; by default the one last fitted for, if any.
        validation: iterable of `(input, target)`, kept in memory. What is chosen by it looks better on it than it is.
        batches: training batches. If there is batch normalisation, the first 20 re-estimate its statistics for each
            network measured, and in `q` for the one decided; by default they stay as they are.
        evaluations: greatest number of networks measured.
        examples: greatest number of validation examples for each; by default all.
        progress: show a progress bar.

    Returns:
        The assignment, with its measured `loss`; its `gap` says by how many nats the most probable one is more
        probable.

    Warns:
        UserWarning: where the user interrupted; the best assignment so far is returned. Where layers at 0 bits make the
            outputs the same for all inputs.

    Raises:
        ProbqError: if there is no validation data, or no choice keeps the budget.

    Example:
        >>> import probq, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> x, y, budget = torch.rand(8, 2), torch.arange(8) % 2, probq.Budget(percent=2)
        >>> a = probq.decide(probq.quantize(net, x), budget, [(x, y)], progress=False)
        >>> a.percent() <= 2
        True
    """
    check_posterior(q, "decide")
    check_number("evaluations", evaluations, 1)
    if examples is not None:
        check_number("examples", examples, 1)
    budget = budget or q.budget
    if widths_are_fixed(q):
        return mode(q, budget)
    search = None
    try:
        training = None if batches is None else Batches(batches, q.device)
        loss = ValidationLoss(q, Batches(validation, q.device, "validation data"), training, examples)
        search = make_search(q, budget, loss, evaluations)
        search.run(progress)
        measure_favourites(q, search, budget, progress)
    except KeyboardInterrupt:
        measured = 0 if search is None else len(search.losses)
        warnings.warn(
            f"interrupted after {measured} of {evaluations} evaluations; this is the best decision so far",
            UserWarning,
            stacklevel=2,
        )
    if search is None:  # nothing was measured, not even the data read
        return mode(q, budget)
    widths = search.space.widths(search.best)
    loss.settle(q, widths)
    take_evidence(q, search.space, search.losses, budget)
    warn_constant(q, widths)
    return replace(with_widths(q, widths, budget), loss=search.losses.get(search.best))


def make_search(
    q: Quantized,
    budget: Budgets,
    measure: Measure,
    evaluations: int,
    laws: Mapping[str, np.ndarray] | None = None,
    start: Mapping[str, Any] | None = None,
) -> BestFirstSearch:
    """Return a search that starts from the most probable widths of a network, ready to run.

    Args:
        q: the network.
        budget: the limit, several, or None.
        measure: the loss of given widths.
        evaluations: greatest number of losses to measure.
        laws: log-probabilities of rungs `[B]` that stand in for the posterior's; rungs at `-inf` are left out, and all
            gates of a tensor take one rung.
        start: widths to start from instead.

    Raises:
        ProbqError: if the budget is below the cheapest reachable cost.
    """
    starts = _starts(constrained_posterior(q, budget)) if start is None else [start]
    names, options, log_probs = [], [], []
    for name, quantizer in q.named_sites():
        if laws is None:
            rungs = _options(quantizer, starts[0][name])
            of_gates = quantizer.widths().log_probs.detach().double().cpu().numpy().reshape(-1, len(quantizer.ladder))
        else:
            gates = math.prod(quantizer.gates)
            rungs = [np.full(gates, rung) for rung in np.flatnonzero(np.isfinite(laws[name]))]
            of_gates = np.tile(laws[name] / gates, (gates, 1))
        names.append(name)
        options.append(tuple(format_bits(quantizer, np.asarray(quantizer.ladder.bits)[r]) for r in rungs))
        log_probs.append(np.array([of_gates[np.arange(len(r)), r].sum() for r in rungs]))
    space = WidthSpace(tuple(names), tuple(options), tuple(log_probs), (), q.sites)
    limits = tuple((StateCost(q.layers, b.cost, space), b.absolute(q.layers)) for b in budgets(budget))
    space = replace(space, limits=limits)
    first = [space.state(widths) for widths in starts if space.has(widths)]
    if laws is not None or space.has_own_gates:
        return BestFirstSearch(space, first, measure, evaluations)
    survey = [space.state(widths) for widths in drawn_choices(q, budget, int(SURVEY * evaluations))]
    return BestFirstSearch(space, first, measure, evaluations, survey, int(FAVOURITES * evaluations))


def drawn_choices(q: Quantized, budget: Budgets, number: int) -> list[dict[str, Any]]:
    """Return widths drawn uniformly among those within the limits, always the same, one for all gates of a tensor.

    What is measured near the best choice alone tells little about all others. Rungs that a search has left out are left
    out here, too.
    """
    if not number:
        return []
    discrete = constrain(q, budgets(budget), laws=equal_laws(q))
    assert discrete is not None  # it raises otherwise
    drawn = discrete.draws(number, np.random.default_rng(0))
    return [format_widths(q, discrete.problem.widths(choice)) for choice in drawn]


def _starts(discrete: ConstrainedPosterior) -> list[dict[str, Any]]:
    """The most probable widths within the limits, the best first; only the best where tensors have many gates."""
    problem = discrete.problem
    best, _ = discrete.most_probable()
    if any((group.counts > 1).any() for group in problem.groups):
        return [problem.widths(best)]
    inside = filter(discrete.keeps, islice(most_probable_first(problem, discrete.limits), 2 * STARTS))
    return [problem.widths(c) for c in islice(inside, STARTS)] or [problem.widths(best)]


def _options(quantizer: Quantizer, best: Any) -> list[np.ndarray]:
    """Return the rungs of the gates `[G]` in every option: every rung if all share one, else the best shifted.

    A rung that the search has left out is no option where the best choice can do without.
    """
    count = len(quantizer.ladder)
    if not quantizer.gates:
        left_out = is_held(quantizer) and quantizer.ladder.bits[0] != best
        return [np.array([k]) for k in range(int(left_out), count)]
    rungs = np.searchsorted(quantizer.ladder.bits, np.asarray(best).reshape(-1))
    shifted = [np.clip(rungs + by, 0, count - 1) for by in range(1 - count, count)]
    return [r for k, r in enumerate(shifted) if k == 0 or not np.array_equal(r, shifted[k - 1])]
