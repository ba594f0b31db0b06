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
from probq import solve
from probq.assignment import Assignment
from probq.budget import Budget
from probq.choices import Problem, problem
from probq.errors import ProbqError
from probq.program import Program
from probq.quantizer import Quantizer, WeightQuantizer
from probq.rounding import code_indices


def decide(
    q: Any,
    budget: Budget | None = None,
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
    the fewest rungs down of another one. The order follows a Gaussian process on what was measured, whose mean is the
    posterior; it ends when no step helps. Where channels or weights have widths of their own, a step moves all of
    them. So local steps can miss a better choice that lies two steps away.

    Args:
        q: from `quantize` or `fit`. Fixed widths are returned as they are.
        budget: the limit, always kept; by default the one last fitted for, if any.
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

    return refined(q, budget, validation, batches, evaluations, examples, progress)


def problem_of(q: Program, cost: costs.Cost = costs.bops) -> Problem:
    """The discrete problem of a network's posterior over widths."""
    ladders = {name: quantizer.ladder for name, quantizer in q.named_quantizers()}
    with torch.no_grad():
        log_probs = {n: quantizer.widths().log_probs.double().cpu().numpy() for n, quantizer in q.named_quantizers()}
    for name, quantizer in q.named_quantizers():
        if quantizer.gates:
            log_probs[name] = log_probs[name].reshape(-1, len(quantizer.ladder))
    return problem(q.layers, ladders, log_probs, cost)


def decided(q: Program) -> bool:
    """Whether every width is fixed."""
    return not any(quantizer.free for _, quantizer in q.named_quantizers())


def settled(q: Program) -> bool:
    """Whether every width was fixed by a decision; a ladder of one rung alone is none."""
    return all(quantizer.fixed is not None for _, quantizer in q.named_quantizers())


def decided_rungs(q: Program, budget: Budget | None) -> dict[str, np.ndarray] | None:
    """Rungs of every quantizer where they do not follow from the posterior: fixed, or measured by a fit; else None."""
    if decided(q):
        return {n: _rungs(quantizer, quantizer.fixed) for n, quantizer in q.named_quantizers()}
    if budget is not None and q.budget is not None and budget != q.budget:
        return None
    if any(quantizer.tuned is None for _, quantizer in q.named_quantizers()):
        return None
    rungs = {n: _rungs(quantizer, quantizer.tuned) for n, quantizer in q.named_quantizers()}
    if budget is None or costs.total(q.layers, _widths(q, rungs), budget.cost) <= budget.absolute(q.layers):
        return rungs
    return None


def decision(q: Program, budget: Budget | None) -> Assignment:
    """What ships: the widths that a fit measured for this budget and tuned the network for, otherwise the mode."""
    rungs = decided_rungs(q, budget)
    if rungs is None or decided(q):
        return mode(q, budget)
    return with_widths(q, _widths(q, rungs), budget)


def with_widths(q: Program, widths: dict[str, Any], budget: Budget | None) -> Assignment:
    """An assignment of given widths and their most probable codes."""
    discrete, choice, gap, _ = most_probable(q, budget)
    log_prob = 0.0
    for name, chosen in onehots(q, widths).items():
        with torch.no_grad():
            log_prob += float((q.quantizer(name).widths().log_probs.double() * chosen).sum())
    gap = max(0.0, discrete.value(choice)[0] + gap - log_prob)
    limit = budget.absolute(q.layers) if budget else None
    return Assignment(widths, codes(q, widths), q.layers, log_prob, gap, limit)


def mode(q: Program, budget: Budget | None) -> Assignment:
    """The most probable widths within the budget, and the most probable code of every weight."""
    if decided(q):
        return _fixed(q, budget)
    discrete, choice, gap, _ = most_probable(q, budget)
    widths = shaped(q, discrete.widths(choice))
    limit = budget.absolute(q.layers) if budget else None
    return Assignment(widths, codes(q, widths), q.layers, discrete.value(choice)[0], gap, limit)


def most_probable(q: Program, budget: Budget | None) -> tuple[Problem, solve.Choice, float, float]:
    """The discrete problem, its most probable choice, the gap proven in nats, and the limit."""
    discrete = problem_of(q, budget.cost if budget else costs.bops)
    limit = budget.absolute(q.layers) if budget else 2 * discrete.full + 1
    return discrete, *solve.most_probable(discrete, limit), limit


def sample(q: Program, n: int, budget: Budget | None, seed: int | None) -> list[Assignment]:
    """Draws of widths from the posterior given that they keep the budget, and of codes given the widths."""
    with torch.random.fork_rng(devices=[]):
        generator = np.random.default_rng(int(torch.randint(2**62, ())) if seed is None else seed)
        torch.manual_seed(int(generator.integers(2**62)))
        if decided(q):
            widths = _fixed(q, budget).widths
            return [Assignment(widths, codes(q, widths, draw=True), q.layers) for _ in range(n)]
        discrete = problem_of(q, budget.cost if budget else costs.bops)
        limit = budget.absolute(q.layers) if budget else 2 * discrete.full + 1
        result = []
        for choice in solve.conditional_draws(discrete, limit, n, generator):
            drawn = shaped(q, discrete.widths(choice))
            log_prob = discrete.value(choice)[0]
            result.append(
                Assignment(drawn, codes(q, drawn, draw=True), q.layers, log_prob, limit=limit if budget else None)
            )
        return result


def probability_within(q: Program, budget: Budget, draws: int | None = None, seed: int = 0) -> float:
    """`P(cost <= limit)` of a draw of widths; 0 or 1 where they are fixed.

    Args:
        q: the network.
        budget: the limit.
        draws: where the cost takes too many values for an exact sum, the number of draws to estimate it from; by
            default 20,000, and at least 100 where very many gates would make that slow.
        seed: of those draws.
    """
    if decided(q):
        return float(_fixed(q, None).cost(budget.cost) <= budget.absolute(q.layers))
    if draws is None:
        gates = sum(max(1, math.prod(quantizer.gates)) for _, quantizer in q.named_quantizers())
        draws = max(100, min(20000, 100_000_000 // gates))
    return solve.probability_within(problem_of(q, budget.cost), budget.absolute(q.layers), draws, seed)


def _fixed(q: Program, budget: Budget | None) -> Assignment:
    widths = _widths(q, {n: _rungs(quantizer, quantizer.fixed) for n, quantizer in q.named_quantizers()})
    cost = costs.total(q.layers, widths, budget.cost if budget else costs.bops)
    limit = budget.absolute(q.layers) if budget else None
    if limit is not None and cost > limit:
        raise ProbqError(f"the widths are fixed and cost {cost:,.0f}, above the budget of {limit:,.0f}; decide again")
    return Assignment(widths, codes(q, widths), q.layers, limit=limit)


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
            law = quantizer.law(q.location(name), rung)
            levels = law.rsample() if draw and quantizer.nearest > 1 else law.mode
            result[name] = code_indices(rung.levels, levels).int().cpu().numpy()
    return result


def fix(q: Program, widths: Any) -> None:
    """Fix every width of a network in place."""
    for name, quantizer in q.named_quantizers():
        check_width(name, quantizer, widths)
        quantizer.fix(np.asarray(widths[name]).reshape(quantizer.gates))


def check_width(name: str, quantizer: Quantizer, widths: Any) -> None:
    """Raise unless an assignment names a quantizer with widths of the right shape."""
    if name not in widths:
        raise ProbqError(f"the assignment has no width for {name}; was it made for another network?")
    if np.asarray(widths[name]).size != int(np.prod(quantizer.gates)):
        raise ProbqError(f"the assignment's widths for {name} do not fit; was it made for another plan?")
