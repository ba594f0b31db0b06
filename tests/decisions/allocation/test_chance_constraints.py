"""Chance constraints: sums and the largest layer by enumeration and finite differences, bounds by draws, short fits."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from small_fits import fitted, network
from torch import Tensor, nn

import probq
from probq import Budget, ProbqError, Quantized
from probq import cost as costs
from probq.codebooks import ladder
from probq.decisions.allocation.chance_constraints import (
    BinnedDistribution,
    CantelliBound,
    ExactDistribution,
    LargestCost,
    chance_constraint,
    moments,
)
from probq.decisions.constrained_posterior import width_problem
from probq.decisions.within_budget import probability_within
from probq.training.svi.budget_constraint import BudgetConstraint, enforce_chance

LARGEST = costs.largest_activation


def probs(q: Quantized) -> dict[str, Tensor]:
    return {name: quantizer.probs() for name, quantizer in q.named_quantizers()}


def every_choice(q: Quantized) -> tuple[np.ndarray, np.ndarray]:
    """Cost and probability of every choice of widths, by enumeration."""
    names = [name for name, _ in q.named_quantizers()]
    laws = [z.probs().detach().double().reshape(-1, len(z.ladder)) for _, z in q.named_quantizers()]
    costs, weights = [], []
    for rungs in itertools.product(*(range(law.shape[-1]) for law in laws)):
        widths = {name: q.quantizer(name).ladder.bits[k] for name, k in zip(names, rungs, strict=True)}
        costs.append(probq.cost.total(q.layers, widths))
        weights.append(math.prod(float(law[0, k]) for law, k in zip(laws, rungs, strict=True)))
    return np.array(costs), np.array(weights)


def logistic_gap(within: float, p: float, sd: float, limit: float) -> float:
    """The gap of a probability: distance of two logits in standard deviations of a logistic law."""
    return sd / limit * (stats.logistic.ppf(p) - stats.logistic.ppf(within)) / stats.logistic.std()


@pytest.mark.parametrize("limit", [150.0, 200.0, 300.0])
def test_an_exact_chance_is_that_of_enumeration(limit: float) -> None:
    q = network()
    costs, weights = every_choice(q)
    law = chance_constraint(width_problem(q), 0.9)
    assert isinstance(law, ExactDistribution)
    within, over = law.probabilities(probs(q), limit)
    assert 0.01 < float(within.detach()) < 0.99
    assert float(within.detach()) == pytest.approx(weights[costs <= limit].sum(), rel=1e-6)
    assert float(over.detach()) == pytest.approx(weights[costs > limit].sum(), rel=1e-6)
    mean, variance = (float(m.detach()) for m in moments(law.problem, probs(q)))
    assert mean == pytest.approx(costs @ weights, rel=1e-6)
    assert variance == pytest.approx((costs - costs @ weights) ** 2 @ weights, rel=1e-5)
    gap = logistic_gap(weights[costs <= limit].sum(), 0.9, math.sqrt(variance), limit)
    assert float(law.gap(probs(q), limit).detach()) == pytest.approx(gap, rel=1e-4)


@pytest.mark.parametrize("kind", [ExactDistribution, BinnedDistribution, CantelliBound])
def test_the_gradient_of_a_chance_is_that_of_differences(kind: Any) -> None:
    q = network("channel" if kind is CantelliBound else "tensor").double()
    law, limit = kind(width_problem(q), 0.9), 200.0

    def value() -> Tensor:
        return law.gap(probs(q), limit) if isinstance(law, CantelliBound) else law.probabilities(probs(q), limit)[0]

    value().backward()
    for name in ("0.weight", "2.weight", "2.input"):
        logits = q.quantizer(name).logits
        slope = float(logits.grad.reshape(-1)[0])
        ends = []
        for step in (1e-5, -2e-5):
            logits.data.reshape(-1)[0] += step
            ends.append(float(value().detach()))
        logits.data.reshape(-1)[0] += 1e-5
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-9)
        assert abs(slope) > 1e-6


@pytest.mark.parametrize("limit", [150.0, 203.0, 300.0])
def test_bins_never_promise_too_much(limit: float) -> None:
    q = network()
    costs, weights = every_choice(q)
    bound = float(BinnedDistribution(width_problem(q), 0.9).probabilities(probs(q), limit)[0].detach())
    assert bound <= weights[costs <= limit].sum() + 1e-9
    assert bound >= weights[costs <= limit * 0.998].sum() - 1e-9


@pytest.mark.parametrize("gates", ["channel", "weight"])
def test_the_bound_of_cantelli_holds_and_its_moments_are_those_of_draws(gates: str) -> None:
    q = network(gates)
    law = chance_constraint(width_problem(q), 0.8)
    assert isinstance(law, CantelliBound)
    generator = np.random.default_rng(0)
    bits = {
        name: np.array([generator.choice(quantizer.ladder.bits, 4000, p=row / row.sum()) for row in rows])
        for name, quantizer in q.named_quantizers()
        for rows in [quantizer.probs().detach().double().reshape(-1, len(quantizer.ladder)).numpy()]
    }
    costs = sum(m.macs * bits[m.weight].mean(0) * bits[m.input][0] for m in q.layers)
    mean, variance = (float(m.detach()) for m in moments(law.problem, probs(q)))
    assert abs(costs.mean() - mean) < 4 * math.sqrt(variance / 4000)
    assert costs.std() == pytest.approx(math.sqrt(variance), rel=0.05)
    level = mean + 2 * math.sqrt(variance)  # sqrt(p / (1 - p)) = 2
    assert float(law.gap(probs(q), level).detach()) == pytest.approx(0, abs=1e-6)
    assert (costs <= level).mean() >= 0.8


@pytest.mark.parametrize("p", [0, 1, -0.5, 2, math.nan, True, "0.9"])
def test_a_probability_that_cannot_be_is_refused(p: Any) -> None:
    with pytest.raises(ProbqError, match="probability lies between 0 and 1"):
        Budget(percent=1.0, probability=p)
    assert repr(Budget(percent=1.0, probability=0.9)) == "Budget(percent=1.0, limit=None, probability=0.9)"


def test_a_file_holds_the_probability(tmp_path: Path) -> None:
    q = network()
    q.budget = Budget(limit=200.0, probability=0.97)
    q.save(tmp_path / "q.safetensors")
    assert probq.load(tmp_path / "q.safetensors", q.net).budget == q.budget


@pytest.mark.parametrize("gates", ["tensor", "channel"])
def test_a_chance_that_does_not_hold_is_made_to(gates: str) -> None:
    q, budget = network(gates), Budget(limit=200.0, probability=0.97)
    assert probability_within(q, budget) < 0.9
    enforce_chance(q, [BudgetConstraint(q, budget)])
    assert probability_within(q, budget) >= 0.97
    after = {name: quantizer.logits.detach().clone() for name, quantizer in q.named_quantizers()}
    enforce_chance(q, [BudgetConstraint(q, budget)])  # what holds is left alone
    assert all(torch.equal(after[name], quantizer.logits) for name, quantizer in q.named_quantizers())


@pytest.mark.parametrize("gates", ["tensor", "channel"])
def test_gates_that_are_nearly_sure_are_made_to_keep_a_chance(gates: str) -> None:
    """There the bound first rises with the spread, and the exact probability has no slope."""
    q = network(gates)
    with torch.no_grad():
        for _, quantizer in q.named_quantizers():
            quantizer.logits.fill_(6.0 if gates == "channel" else 12.0)
    budget = Budget(limit=1.5 * float(width_problem(q).cheapest[0]), probability=0.6)
    assert probability_within(q, budget) < 0.01
    enforce_chance(q, [BudgetConstraint(q, budget)])
    assert probability_within(q, budget) >= 0.6


def test_a_chance_that_cannot_hold_is_said() -> None:
    q = network("channel")
    cheapest = width_problem(q).cheapest[0]
    with pytest.warns(UserWarning, match="could not make its widths keep the limit"):
        enforce_chance(q, [BudgetConstraint(q, Budget(limit=cheapest, probability=0.9))])


@pytest.mark.filterwarnings("ignore:at 0 bits of")
@pytest.mark.parametrize("percent", [0.2, 0.5, 2.0])
def test_a_fit_keeps_its_chance(percent: float) -> None:
    budget = Budget(percent=percent, probability=0.95)
    q, _ = fitted(0, budget)
    assert probability_within(q, budget) >= 0.95


# The largest layer, and pruned channels


def three_layers(seed: int = 0, tied: bool = False) -> Quantized:
    """Three layers whose inputs have 6, 10 and 8 numbers, with log-odds of the gates drawn at random."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2))
    free = ladder(2, 4, 8, signed=False)
    plan = probq.Plan(weight=ladder(2, 4), input=free, network_input=ladder(3), tie_input="all" if tied else None)
    q = probq.quantize(net, torch.randn(5, 6), plan)
    with torch.no_grad():
        for _, quantizer in q.named_quantizers():
            quantizer.logits.normal_(1.0, 1.0)
    return q


def every_largest(q: Quantized) -> tuple[np.ndarray, np.ndarray]:
    """Largest activation and probability of every choice of the widths of inputs, by enumeration."""
    sites = [(n, z) for n, z in q.named_sites() if n in q.input_names]
    laws = [z.probs().detach().double() for _, z in sites]
    values, weights = [], []
    for rungs in itertools.product(*(range(len(law)) for law in laws)):
        own = {n: z.ladder.bits[k] for (n, z), k in zip(sites, rungs, strict=True)}
        widths = {n: own[q.sites.get(n, n)] for n in q.input_names} | dict.fromkeys(q.weight_names, 2)
        values.append(costs.total(q.layers, widths, LARGEST))
        weights.append(math.prod(float(law[k]) for law, k in zip(laws, rungs, strict=True)))
    return np.array(values), np.array(weights)


def largest(q: Quantized, p: float = 0.9) -> LargestCost:
    law = BudgetConstraint(q, Budget(limit=80, cost=LARGEST, probability=p)).chance
    assert isinstance(law, LargestCost)
    return law


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("limit", [10.0, 20.0, 31.9, 32.0, 40.0, 64.0, 79.0, 80.0])
def test_the_law_of_the_largest_layer_is_that_of_enumeration(limit: float, tied: bool) -> None:
    q = three_layers(tied=tied)
    values, weights = every_largest(q)
    law = largest(q)
    within, over = law.probabilities(probs(q), limit)
    assert float(within.detach()) == pytest.approx(weights[values <= limit].sum(), abs=1e-6)
    assert float(over.detach()) == pytest.approx(weights[values > limit].sum(), abs=1e-6)
    mean, variance = (float(m.detach()) for m in law.moments(probs(q)))
    assert mean == pytest.approx(values @ weights, rel=1e-6)
    assert variance == pytest.approx((values - values @ weights) ** 2 @ weights, rel=1e-5)


def test_the_gradient_of_the_largest_is_that_of_differences() -> None:
    q = three_layers().double()
    law = largest(q)
    law.gap(probs(q), 40.0).backward()
    with torch.no_grad():
        sd = float(law.moments(probs(q))[1].sqrt()) / 40
    for name in ("2.input", "4.input"):
        logits, ends = q.quantizer(name).logits, []
        slope = float(logits.grad[0])
        for step in (1e-5, -2e-5):
            logits.data[0] += step
            within, over = (float(part.detach()) for part in law.probabilities(probs(q), 40.0))
            ends.append(-sd * math.sqrt(3) / math.pi * (math.log(within) - math.log(over)))  # the sd is a constant
        logits.data[0] += 1e-5
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)
        assert abs(slope) > 1e-3


@pytest.mark.parametrize("limit", [20.0, 40.0, 64.0])
def test_a_fit_keeps_its_chance_for_the_largest_layer(limit: float) -> None:
    q = three_layers()
    x, y = torch.randn(64, 6), torch.randint(2, (64,))
    budget = Budget(limit=limit, cost=LARGEST, probability=0.95)
    probq.fit(q, [(x, y)] * 4, budget, epochs=10, search=1.0, seed=0, progress=False)
    values, weights = every_largest(q)
    assert weights[values <= limit].sum() >= 0.95
    assert probability_within(q, budget) == pytest.approx(weights[values <= limit].sum(), abs=1e-6)


@pytest.mark.filterwarnings("ignore:the posterior was never fitted")
def test_a_chance_with_pruned_channels_holds() -> None:
    """By the bound that counts pruned channels as if they were there, so by more than asked for."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 2))
    q = probq.quantize(net, torch.randn(5, 6), probq.Plan(weight=ladder(0, 2, 4), gates="channel"))
    full = BudgetConstraint(q, Budget(percent=100, cost=costs.pruned_bops))
    budget = Budget(limit=0.7 * float(full.expected().detach()), cost=costs.pruned_bops, probability=0.9)
    drawn = [a.cost(costs.pruned_bops) for a in q.sample(400, seed=0)]
    assert np.mean(np.array(drawn) <= budget.limit) < 0.5
    enforce_chance(q, [BudgetConstraint(q, budget)])
    drawn = [a.cost(costs.pruned_bops) for a in q.sample(400, seed=0)]
    assert np.mean(np.array(drawn) <= budget.limit) >= 0.9
