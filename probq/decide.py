"""Decisions: from the posterior to one choice of widths and codes that keeps a limit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from probq import cost as costs
from probq.assignment import Assignment
from probq.budget import Budgets, budgets
from probq.errors import ProbqError
from probq.figures import figure
from probq.limited import Limited, limited
from probq.program import Program, check_posterior
from probq.quantizer import Quantizer
from probq.random_stream import Stream
from probq.rounding import code_indices
from probq.weight_quantizer import WeightQuantizer


def decide(
    q: Any,
    budget: Budgets = None,
    validation: Iterable[Any] = (),
    *,
    batches: Iterable[Any] | None = None,
    evaluations: int = 100,
    examples: int | None = None,
    progress: bool = True,
) -> Assignment:
    """The decision that spends the budget: least measured validation loss among choices around the most probable one.

    The loss is the likelihood's mean negative log-probability of one example, with every code at its mode. Where no
    more choices keep the budget than may be measured, all are, and the result is the best of all. Otherwise the most
    probable ten come first, then steps from the best so far: one quantizer a rung up or down, or a rung up paid for by
    the fewest rungs down of another one (among more than 64 quantizers, of the few that give up least
    log-probability). The order follows a Gaussian process on what was measured, whose mean is the
    posterior; it ends when no step helps. Where channels or weights have widths of their own, a step moves all of
    them. So local steps can miss a better choice that lies two steps away.

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
        UserWarning: where the user interrupted; the best assignment so far is returned.

    Raises:
        ProbqError: if there is no validation data, or no choice keeps the budget.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> import probq
        >>> x, y, budget = torch.rand(8, 2), torch.arange(8) % 2, probq.Budget(percent=2)
        >>> a = probq.decide(probq.quantize(net, x), budget, [(x, y)], progress=False)
        >>> a.percent() <= 2
        True
    """
    from probq.refine import refined

    check_posterior(q, "decide")
    return refined(q, budget, validation, batches, evaluations, examples, progress)


def decided(q: Program) -> bool:
    """Whether every width is fixed."""
    return not any(quantizer.free for _, quantizer in q.named_quantizers())


def settled(q: Program) -> bool:
    """Whether every width was fixed by a decision; a ladder of one rung alone is none."""
    return all(quantizer.fixed is not None for _, quantizer in q.named_quantizers())


def decided_rungs(q: Program, budget: Budgets) -> dict[str, np.ndarray] | None:
    """Rungs of every quantizer where they are known without it: fixed, or those that a fit tuned for; else None."""
    if decided(q):
        return {n: _rungs(quantizer, quantizer.fixed) for n, quantizer in q.named_quantizers()}
    if budgets(budget) and budgets(q.budget) and budgets(budget) != budgets(q.budget):
        return None
    widths = tuned_widths(q)
    if widths is None or any(costs.total(q.layers, widths, b.cost) > b.absolute(q.layers) for b in budgets(budget)):
        return None
    return {n: _rungs(quantizer, quantizer.tuned) for n, quantizer in q.named_quantizers()}


def tuned_widths(q: Program) -> dict[str, Any] | None:
    """Widths that the last fit tuned the network at, or None: no fit has, or it learned widths to its end."""
    if any(quantizer.tuned is None for _, quantizer in q.named_quantizers()):
        return None
    return _widths(q, {n: _rungs(quantizer, quantizer.tuned) for n, quantizer in q.named_quantizers()})


def decision(q: Program, budget: Budgets) -> Assignment:
    """What ships: the widths that a fit tuned the network for under this budget, otherwise the mode."""
    rungs = decided_rungs(q, budget)
    if rungs is None or decided(q):
        return mode(q, budget)
    return with_widths(q, _widths(q, rungs), budget)


def with_widths(q: Program, widths: dict[str, Any], budget: Budgets) -> Assignment:
    """An assignment of given widths and their most probable codes."""
    discrete = under(q, budget)
    choice, gap = discrete.most_probable()
    best, greatest = shaped(q, discrete.problem.widths(choice)), discrete.problem.value(choice)[0]
    log_prob, chosen = 0.0, onehots(q, widths)
    for name, quantizer in q.named_sites():
        with torch.no_grad():
            log_prob += float((quantizer.widths().log_probs.double() * chosen[name]).sum())
    if all(np.array_equal(best[name], widths[name]) for name in best):
        log_prob = greatest  # the same sum, added up in one order
    gap = max(0.0, greatest + gap - log_prob)
    return Assignment(widths, codes(q, widths), q.layers, log_prob, gap, _limit(q, budget))


def mode(q: Program, budget: Budgets) -> Assignment:
    """The most probable widths within the budget, or all of several, and the most probable code of every weight."""
    if decided(q):
        return _fixed(q, budget)
    discrete = under(q, budget)
    choice, gap = discrete.most_probable()
    widths = shaped(q, discrete.problem.widths(choice))
    log_prob = discrete.problem.value(choice)[0]
    return Assignment(widths, codes(q, widths), q.layers, log_prob, gap, _limit(q, budget))


def reach(q: Program, budget: Budgets) -> None:
    """Raise unless some widths keep the budget, or all of several."""
    if settled(q):
        _fixed(q, budget)
    else:
        under(q, budget).check()


def under(q: Program, budget: Budgets) -> Limited:
    """The discrete problem of a network under its limits."""
    found = limited(q, budgets(budget))
    assert found is not None  # it raises otherwise
    return found


def _limit(q: Program, budget: Budgets) -> float | tuple[float, ...] | None:
    limits = tuple(b.absolute(q.layers) for b in budgets(budget))
    return limits if len(limits) > 1 else limits[0] if limits else None


def sample(q: Program, n: int, budget: Budgets, seed: int | None) -> list[Assignment]:
    """Draws of widths from the posterior given that they keep the budget, and of codes given the widths."""
    generator = np.random.default_rng(int(torch.randint(2**62, ())) if seed is None else seed)
    with Stream(int(generator.integers(2**62))).drawing():
        if decided(q):
            widths = _fixed(q, budget).widths
            return [Assignment(widths, codes(q, widths, draw=True), q.layers) for _ in range(n)]
        discrete, limit = under(q, budget), _limit(q, budget)
        result = []
        for choice in discrete.draws(n, generator):
            drawn = shaped(q, discrete.problem.widths(choice))
            log_prob = discrete.problem.value(choice)[0]
            result.append(Assignment(drawn, codes(q, drawn, draw=True), q.layers, log_prob, limit=limit))
        return result


def probability_within(q: Program, budget: Budgets, draws: int | None = None, seed: int = 0) -> float:
    """`P(cost <= limit)` of a draw of widths; 0 or 1 where they are fixed.

    Args:
        q: the network.
        budget: the limit, or several that a draw must keep all.
        draws: where the cost takes too many values for an exact sum, the number of draws to estimate it from; by
            default 20,000, and at least 100 where very many gates would make that slow.
        seed: of those draws.
    """
    if decided(q):
        widths = _fixed_widths(q)
        return float(all(costs.total(q.layers, widths, b.cost) <= b.absolute(q.layers) for b in budgets(budget)))
    if draws is None:
        gates = sum(max(1, math.prod(quantizer.gates)) for _, quantizer in q.named_sites())
        draws = max(100, min(20000, 100_000_000 // gates))
    discrete = limited(q, budgets(budget), strict=False)
    return 0.0 if discrete is None else discrete.probability(draws, seed)


def _fixed_widths(q: Program) -> dict[str, Any]:
    return _widths(q, {n: _rungs(quantizer, quantizer.fixed) for n, quantizer in q.named_quantizers()})


def _fixed(q: Program, budget: Budgets) -> Assignment:
    widths = _fixed_widths(q)
    for one in budgets(budget):
        cost, limit = costs.total(q.layers, widths, one.cost), one.absolute(q.layers)
        if cost > limit:
            raise ProbqError(
                f"the widths are fixed and cost {figure(cost, up=True)} {costs.name(one.cost)}, above the budget of "
                f"{figure(limit)}; decide again"
            )
    return Assignment(widths, codes(q, widths), q.layers, limit=_limit(q, budget))


def _rungs(quantizer: Quantizer, rungs: Tensor | None) -> np.ndarray:
    return np.zeros(quantizer.gates, dtype=np.int64) if rungs is None else rungs.cpu().numpy()


def _widths(q: Program, rungs: dict[str, np.ndarray]) -> dict[str, Any]:
    return shaped(q, {n: np.asarray(q.quantizer(n).ladder.bits)[r] for n, r in rungs.items()})


def shaped(q: Program, widths: dict[str, Any]) -> dict[str, Any]:
    """Widths as the user reads them: an int for a tensor, `[channels]`, or the weight's own shape."""
    return {name: shape_bits(quantizer, np.asarray(widths[name])) for name, quantizer in q.named_quantizers()}


def shape_bits(quantizer: Quantizer, bits: np.ndarray) -> Any:
    """Widths of one quantizer as in `shaped`."""
    if not quantizer.gates:
        return int(bits.reshape(-1)[0])
    own = isinstance(quantizer, WeightQuantizer) and quantizer.gates == quantizer.shape
    return bits.reshape(quantizer.gates if own else -1)


def onehots(q: Program, widths: Any) -> dict[str, Tensor]:
    """One-hot rungs of decided widths."""
    result = {}
    for name, quantizer in q.named_quantizers():
        bits = np.asarray(widths[name]).reshape(quantizer.gates)
        rung = torch.as_tensor(np.searchsorted(quantizer.ladder.bits, bits), device=q.device)
        result[name] = F.one_hot(rung, len(quantizer.ladder)).to(torch.get_default_dtype())
    return result


@torch.no_grad()
def codes(q: Program, widths: Any, draw: bool = False) -> dict[str, np.ndarray]:
    """Codes of every weight at decided widths: the most probable ones, or a draw."""
    chosen, result = onehots(q, widths), {}
    with q.evaluating():  # the codes of what ships: normalisation folded
        for name, quantizer in q.weights.items():
            rung = q.rung(name, chosen[name])
            law = quantizer.law(q.location(name, rung), rung)
            levels = law.rsample() if draw and quantizer.nearest > 1 else law.mode
            result[name] = code_indices(rung.levels, levels).int().cpu().numpy()
    return result


def fix(q: Program, widths: Any) -> None:
    """Fix every width of a network in place."""
    for name, quantizer in q.named_quantizers():
        check_width(name, quantizer, widths)
        if not np.array_equal(widths[name], widths[q.sites.get(name, name)]):
            raise ProbqError(f"the assignment gives {name} and {q.sites[name]} different widths, but they are tied")
        quantizer.fix(np.asarray(widths[name]).reshape(quantizer.gates))


def check_width(name: str, quantizer: Quantizer, widths: Any) -> None:
    """Raise unless an assignment names a quantizer with widths of the right shape."""
    if name not in widths:
        raise ProbqError(f"the assignment has no width for {name}; was it made for another network?")
    if np.asarray(widths[name]).size != int(np.prod(quantizer.gates)):
        raise ProbqError(f"the assignment's widths for {name} do not fit; was it made for another plan?")
