"""Widths have probabilities and draws, and draws have costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from probq import cost as costs
from probq.cost.budget import Budgets, budgets
from probq.cost.expectation import layer_expectation
from probq.decisions.constrained_posterior import constrained_posterior
from probq.decisions.widths import known_rungs
from probq.network.program.program import Program
from probq.network.quantizers.base import Quantizer
from probq.network.quantizers.weight import WeightQuantizer
from probq.network.tracing.layer import Layer
from probq.utils.arguments import is_count
from probq.utils.errors import ProbqError
from probq.utils.numbers import exact_number

DRAWS = 10_000


MOST_NUMBERS = 2**23  # random numbers held at once


def network_order(q: Program) -> list[str]:
    """Return the names of the widths in the order in which the example reached them, a layer's weight before its input.

    A width that several quantizers share has the name of the first weight, or without one the first input.
    """
    names = [name for layer in q.layers for name in (layer.weight, layer.input) if name is not None and name in q]
    return list(dict.fromkeys(q.sites.get(name, name) for name in names))


def cost_of(q: Program) -> costs.Cost:
    """Return the cost that a network was last fitted for, the first of several; bit operations without a budget."""
    return next((budget.cost for budget in budgets(q.budget)), costs.bops)


def expected_costs(q: Program) -> dict[str, float]:
    """Return the exact expected cost of each layer by name, in the unit of `cost_of(q)`."""
    tables = q.cost_tables(cost_of(q))
    with torch.no_grad():
        laws = {name: quantizer.probs() for name, quantizer in q.named_quantizers()}
        return {layer.name: float(layer_expectation(tables, layer, table, laws)) for layer, table in tables}


def _pair(layer: Layer, shares: dict[str, np.ndarray], table: np.ndarray) -> Any:
    """Return `sum_ij shares(weight)_i shares(input)_j table_ij` over the last axes."""
    certain = np.ones(1)
    weight, x = shares.get(layer.weight, certain), shares.get(layer.input or "", certain)
    return ((weight @ table) * x).sum(-1)


def width_probabilities(q: Program) -> dict[str, np.ndarray]:
    """Return the probability of each rung, float64 `[gates, B]`, by quantizer."""
    return {name: probabilities(q, name) for name, _ in q.named_quantizers()}


def probabilities(q: Program, name: str) -> np.ndarray:
    """Return the probability of each rung of a quantizer, a row for each of its gates, float64 `[gates, B]`.

    Args:
        q: a quantized network, fitted or not.
        name: the name of the quantizer, as `conv1.weight`.

    Raises:
        ProbqError: if the gates hold NaN, as after a fit that diverged.
    """
    quantizer = q.quantizer(name)
    with torch.no_grad():
        if quantizer.free and quantizer.logits.isnan().any():
            raise ProbqError(f"the gates of {name} hold NaN: the fit diverged; fit again, at lower rates")
        return np.asarray(quantizer.probs().double().cpu().numpy().reshape(-1, len(quantizer.ladder)))


def decided_widths(q: Program, budget: Budgets) -> dict[str, Any]:
    """Return the bits of every quantizer, an int or `[gates]`, as `q.mode(budget)` decides them; this needs no codes.

    Raises:
        ProbqError: if the budget is below the cheapest reachable cost, or gates hold NaN.
    """
    rungs = known_rungs(q, budget)
    if rungs is not None:
        bits = {name: np.array(q.quantizer(name).ladder.bits)[r.reshape(-1)] for name, r in rungs.items()}
        return {name: exact_number(b[0]) if len(b) == 1 else b for name, b in bits.items()}
    width_probabilities(q)  # raises where they are NaN
    discrete = constrained_posterior(q, budget)
    return dict(discrete.problem.widths(discrete.most_probable()[0]))


def cost_draws(q: Program) -> int:
    """Return how many draws show how the cost varies: 10,000, or fewer where every weight has a width of its own."""
    gates = sum(math.prod(quantizer.gates) for _, quantizer in q.named_quantizers())
    return max(500, min(DRAWS, 200_000_000 // gates))


def draw_widths(q: Program, draws: int, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return independent draws of widths from the posterior, whether or not they keep a budget.

    Args:
        q: a quantized network.
        draws: number of draws.
        seed: makes them reproducible.

    Returns:
        For each quantizer the share of its gates on each rung `[draws, B]`, and the drawn bits: `[draws]`, or
        `[draws, channels]`; where each weight has its own, their mean `[draws]`.
    """
    if not is_count(draws, 1):
        raise ProbqError(f"draws is a number of draws, 1 or more, not {draws!r}")
    generator = np.random.default_rng(seed)
    shares, widths = {}, {}
    for name, probs in width_probabilities(q).items():
        if name in q.sites:
            continue
        quantizer = q.quantizer(name)
        bits = np.array(quantizer.ladder.bits)
        rungs = list(_rung_draws(probs, draws, generator))
        shares[name] = np.concatenate([np.stack([(r == k).mean(1) for k in range(len(bits))], 1) for r in rungs])
        if _own_widths(quantizer):
            widths[name] = shares[name] @ bits
        else:
            widths[name] = np.concatenate([bits[r] for r in rungs])
            widths[name] = widths[name] if quantizer.gates else widths[name][:, 0]
    tied = {name: (shares[site], widths[site]) for name, site in q.sites.items()}
    return shares | {n: s for n, (s, _) in tied.items()}, widths | {n: w for n, (_, w) in tied.items()}


def _rung_draws(probs: np.ndarray, draws: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Draw rungs `[some draws, gates]`, all draws in parts."""
    cumulative = probs.cumsum(1)[:, :-1]
    rows = max(1, MOST_NUMBERS // max(1, cumulative.size))
    for first in range(0, draws, rows):
        u = generator.random((min(rows, draws - first), len(probs), 1))
        yield (u >= cumulative).sum(2).astype(np.int8)


def _own_widths(quantizer: Quantizer) -> bool:
    """Return whether each weight has a width of its own."""
    return isinstance(quantizer, WeightQuantizer) and bool(quantizer.gates) and quantizer.gates == quantizer.shape


def draw_costs(q: Program, shares: dict[str, np.ndarray], cost: costs.Cost) -> np.ndarray:
    """Return the cost of drawn widths in percent of the 32-bit network, `[draws]`.

    Args:
        q: a quantized network.
        shares: from `draw_widths`.
        cost: the cost.
    """
    draws = len(next(iter(shares.values())))
    tables, parts = q.cost_tables(cost), []
    for layer, pairs in tables:
        left = 1 - shares[tables.reads[layer.name]][:, 0] if layer.name in tables.reads else 1.0
        parts.append(np.zeros(draws) + left * _pair(layer, shares, pairs.cpu().numpy()))
    return np.asarray(costs.percent(costs.as_network_cost(cost).aggregate(parts), q.layers, cost))
