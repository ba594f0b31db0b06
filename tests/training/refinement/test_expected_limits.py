"""Laws of widths are led to the nearest ones whose expected costs keep their limits."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize
from scipy.special import log_softmax
from torch import Tensor, nn

import probq
from probq import Budget, Plan
from probq import cost as costs
from probq.codebooks import ladder
from probq.training.refinement.evidence.expected_limits import keep_expected
from probq.training.svi.budget_constraint import BudgetConstraint

WEIGHTS, INPUTS = ladder(1, 2, 4), ladder(2, 8, signed=False)


def network(tied: bool = False) -> probq.Quantized:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    plan = Plan(weight=WEIGHTS, input=INPUTS, tie_input="all" if tied else None)
    return probq.quantize(net, torch.rand(8, 4), plan)


def random_laws(q: probq.Quantized, seed: int = 0) -> dict[str, Tensor]:
    generator = np.random.default_rng(seed)
    return {n: torch.tensor(np.log(generator.dirichlet(np.ones(len(z.ladder))))) for n, z in q.named_sites()}


def kept(q: probq.Quantized, laws: dict[str, Tensor], *several: Budget) -> dict[str, Tensor]:
    return dict(keep_expected(q, laws, [BudgetConstraint(q, own) for own in several]))


@cache
def choices(q: probq.Quantized, names: tuple[str, ...], cost: costs.Cost) -> tuple[np.ndarray, np.ndarray]:
    """Every choice of rungs, and what it costs."""
    bits = [q.quantizer(n).ladder.bits for n in names]
    every = list(itertools.product(*(range(len(own)) for own in bits)))
    totals = []
    for rungs in every:
        widths = {n: own[r] for n, own, r in zip(names, bits, rungs, strict=True)}
        widths |= {n: widths[site] for n, site in q.sites.items()}
        totals.append(costs.total(q.layers, widths, cost))
    return np.array(every), np.array(totals, dtype=float)


def expectation(q: probq.Quantized, laws: dict[str, Any], cost: costs.Cost) -> float:
    """The expected cost by enumeration."""
    every, totals = choices(q, tuple(laws), cost)
    chances = np.exp(sum(np.asarray(law)[rungs] for law, rungs in zip(laws.values(), every.T, strict=True)))
    return float(chances @ totals)


def divergence(laws: dict[str, Any], others: dict[str, Tensor]) -> float:
    return sum(float(np.sum(np.exp(law) * (np.asarray(law) - others[n].numpy()))) for n, law in laws.items())


def test_a_cost_that_is_a_sum_tilts_each_law() -> None:
    q, laws = network(), random_laws(network())
    limit = 0.8 * expectation(q, laws, costs.storage)
    found = kept(q, laws, Budget(limit=limit, cost=costs.storage))
    sizes = {n: math.prod(q.weights[n].shape) * np.array(WEIGHTS.bits) if n in q.weights else 0.0 for n in laws}

    def tilted(multiplier: float) -> dict[str, np.ndarray]:
        return {n: log_softmax(law.numpy() - multiplier * sizes[n]) for n, law in laws.items()}

    def excess(multiplier: float) -> float:
        return sum(float(np.sum(np.exp(law) * sizes[n])) for n, law in tilted(multiplier).items()) - limit

    multiplier = brentq(excess, 0, 10, xtol=1e-12)
    for name, law in tilted(multiplier).items():
        np.testing.assert_allclose(found[name].exp(), np.exp(law), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tied", [False, True])
def test_no_law_within_the_limit_on_bit_operations_is_nearer(seed: int, tied: bool) -> None:
    q = network(tied)
    laws = random_laws(q, seed)
    limit = 0.6 * expectation(q, laws, costs.bops)
    found = kept(q, laws, Budget(limit=limit))
    assert expectation(q, found, costs.bops) == pytest.approx(limit, rel=1e-6)
    ends = np.cumsum([len(law) for law in laws.values()])

    def split(x: np.ndarray) -> dict[str, Any]:
        return {n: log_softmax(part) for n, part in zip(laws, np.split(x, ends[:-1]), strict=True)}

    def room(x: np.ndarray) -> float:
        return 1 - expectation(q, split(x), costs.bops) / limit

    best = minimize(
        lambda x: divergence(split(x), laws),
        np.concatenate([law.numpy() for law in laws.values()]),
        constraints={"type": "ineq", "fun": room},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert best.success
    assert divergence({n: law.numpy() for n, law in found.items()}, laws) <= best.fun * (1 + 1e-4)


def test_every_one_of_several_limits_is_kept_and_one_that_is_kept_moves_nothing() -> None:
    q = network()
    laws = random_laws(q, 1)
    shares = {costs.bops: 0.7, costs.storage: 0.9}
    several = [Budget(limit=s * expectation(q, laws, c), cost=c) for c, s in shares.items()]
    several.append(Budget(limit=33, cost=costs.largest_activation))  # the network's own input has 4 x 8 bits
    found = kept(q, laws, *several)
    for own in several:
        state = BudgetConstraint(q, own)
        before, after = (
            float(q.expected_cost(state.tables, {n: each[n].exp() for n, _ in q.named_quantizers()}))
            for each in (laws, found)
        )
        assert after <= state.limit * (1 + 1e-6) < before
    wide = Budget(limit=1.001 * expectation(q, laws, costs.bops))
    assert all(torch.equal(law, laws[name]) for name, law in kept(q, laws, wide).items())


def test_a_limit_just_above_the_cheapest_choice_is_kept() -> None:
    q = network()
    laws = {name: torch.log_softmax(30.0 * torch.arange(len(law)).double(), -1) for name, law in random_laws(q).items()}
    narrowest = {n: q.quantizer(n).ladder.bits[0] for n in laws}
    limit = 1.01 * costs.total(q.layers, narrowest)
    assert expectation(q, kept(q, laws, Budget(limit=limit)), costs.bops) <= limit * (1 + 1e-6)
