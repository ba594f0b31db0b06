"""Decisions: from the posterior to one choice of widths and codes that keeps a limit."""

from __future__ import annotations

import math
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
from probq.quantizer import Quantizer
from probq.rounding import code_indices
from probq.weight_quantizer import WeightQuantizer


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


def mode(q: Program, budget: Budget | None) -> Assignment:
    """The most probable widths within the budget, and the most probable code of every weight."""
    if decided(q):
        return _fixed(q, budget)
    discrete = problem_of(q, budget.cost if budget else costs.bops)
    limit = budget.absolute(q.layers) if budget else float("inf")
    choice, gap = solve.most_probable(discrete, limit if budget else 2 * discrete.full + 1)
    widths = shaped(q, discrete.widths(choice))
    log_prob = discrete.value(choice)[0]
    return Assignment(widths, codes(q, widths), q.layers, log_prob, gap, limit if budget else None)


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
    widths: dict[str, Any] = {}
    for name, quantizer in q.named_quantizers():
        rung = quantizer.fixed if quantizer.fixed is not None else torch.zeros(quantizer.gates, dtype=torch.int64)
        widths[name] = np.asarray(quantizer.ladder.bits)[rung.cpu().numpy()]
    widths = shaped(q, widths)
    cost = costs.total(q.layers, widths, budget.cost if budget else costs.bops)
    limit = budget.absolute(q.layers) if budget else None
    if limit is not None and cost > limit:
        raise ProbqError(f"the widths are fixed and cost {cost:,.0f}, above the budget of {limit:,.0f}; decide again")
    return Assignment(widths, codes(q, widths), q.layers, limit=limit)


def shaped(q: Program, widths: dict[str, Any]) -> dict[str, Any]:
    """Widths as the user reads them: an int for a tensor, `[channels]`, or the weight's own shape."""
    result: dict[str, Any] = {}
    for name, quantizer in q.named_quantizers():
        bits = np.asarray(widths[name])
        if not quantizer.gates:
            result[name] = int(bits.reshape(-1)[0])
        else:
            own = isinstance(quantizer, WeightQuantizer) and quantizer.gates == quantizer.shape
            result[name] = bits.reshape(quantizer.gates if own else -1)
    return result


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
