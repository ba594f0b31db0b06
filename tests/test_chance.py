"""Chances of costs that are no plain sums: the largest layer, by enumeration, and pruned channels, by draws."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probq
from probq import Budget, Quantized
from probq import cost as costs
from probq.chance import ExactLargest
from probq.codebooks import ladder
from probq.constraint import Constraint, hold
from probq.decide import probability_within

LARGEST = costs.largest_activation


def network(seed: int = 0, tied: bool = False) -> Quantized:
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


def every_choice(q: Quantized) -> tuple[np.ndarray, np.ndarray]:
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


def probs(q: Quantized) -> dict[str, Tensor]:
    return {name: quantizer.probs() for name, quantizer in q.named_quantizers()}


def largest(q: Quantized, p: float = 0.9) -> ExactLargest:
    law = Constraint(q, Budget(limit=80, cost=LARGEST, probability=p)).chance
    assert isinstance(law, ExactLargest)
    return law


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("limit", [10.0, 20.0, 31.9, 32.0, 40.0, 64.0, 79.0, 80.0])
def test_the_law_of_the_largest_layer_is_that_of_enumeration(limit: float, tied: bool) -> None:
    q = network(tied=tied)
    values, weights = every_choice(q)
    law = largest(q)
    within, over = law.odds(probs(q), limit)
    assert float(within.detach()) == pytest.approx(weights[values <= limit].sum(), abs=1e-6)
    assert float(over.detach()) == pytest.approx(weights[values > limit].sum(), abs=1e-6)
    mean, variance = (float(m.detach()) for m in law.moments(probs(q)))
    assert mean == pytest.approx(values @ weights, rel=1e-6)
    assert variance == pytest.approx((values - values @ weights) ** 2 @ weights, rel=1e-5)


def test_the_gradient_of_the_largest_is_that_of_differences() -> None:
    q = network().double()
    law = largest(q)
    law.gap(probs(q), 40.0).backward()
    with torch.no_grad():
        sd = float(law.moments(probs(q))[1].sqrt()) / 40
    for name in ("2.input", "4.input"):
        logits, ends = q.quantizer(name).logits, []
        slope = float(logits.grad[0])
        for step in (1e-5, -2e-5):
            logits.data[0] += step
            within, over = (float(part.detach()) for part in law.odds(probs(q), 40.0))
            ends.append(-sd * math.sqrt(3) / math.pi * (math.log(within) - math.log(over)))  # the sd is a constant
        logits.data[0] += 1e-5
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)
        assert abs(slope) > 1e-3


@pytest.mark.parametrize("limit", [20.0, 40.0, 64.0])
def test_a_fit_keeps_its_chance_for_the_largest_layer(limit: float) -> None:
    q = network()
    x, y = torch.randn(64, 6), torch.randint(2, (64,))
    budget = Budget(limit=limit, cost=LARGEST, probability=0.95)
    probq.fit(q, [(x, y)] * 4, budget, epochs=10, search=1.0, seed=0, progress=False)
    values, weights = every_choice(q)
    assert weights[values <= limit].sum() >= 0.95
    assert probability_within(q, budget) == pytest.approx(weights[values <= limit].sum(), abs=1e-6)


def test_a_chance_with_pruned_channels_holds() -> None:
    """By the bound that counts pruned channels as if they were there, so by more than asked for."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 2))
    q = probq.quantize(net, torch.randn(5, 6), probq.Plan(weight=ladder(0, 2, 4), gates="channel"))
    full = Constraint(q, Budget(percent=100, cost=costs.pruned_bops))
    budget = Budget(limit=0.7 * float(full.expected().detach()), cost=costs.pruned_bops, probability=0.9)
    drawn = [a.cost(costs.pruned_bops) for a in q.sample(400, seed=0)]
    assert np.mean(np.array(drawn) <= budget.limit) < 0.5
    hold(q, [Constraint(q, budget)])
    drawn = [a.cost(costs.pruned_bops) for a in q.sample(400, seed=0)]
    assert np.mean(np.array(drawn) <= budget.limit) >= 0.9
