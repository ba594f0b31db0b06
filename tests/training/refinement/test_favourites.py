"""The most probable choice under the law of measured losses is measured before the law is trusted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import probq
from probq import Budget, Plan
from probq import cost as costs
from probq.codebooks import ladder
from probq.training.refinement.best_first import BestFirstSearch
from probq.training.refinement.decide import make_search
from probq.training.refinement.evidence.evidence import energy_of_choices
from probq.training.refinement.evidence.space import State
from probq.training.refinement.favourites import measure_favourites


def quantized(gates: str = "tensor") -> probq.Quantized:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    plan = Plan(weight=ladder(1, 2, 3, 4), input=ladder(2, 4, 8, signed=False), gates=gates)
    return probq.quantize(net, torch.rand(8, 4), plan)


def searched(q: probq.Quantized, budget: Budget | None, seed: int, evaluations: int = 60) -> BestFirstSearch:
    """A search over losses that are a sum of effects and a number of each choice's own."""
    generator = np.random.default_rng(seed)
    effects = {name: np.sort(generator.random(4))[::-1] for name, _ in q.named_sites()}

    def loss(widths: dict[str, int]) -> float:
        own = np.random.default_rng([seed, *map(int, widths.values())]).random()
        return 0.5 * own + sum(
            effects[name][list(q.quantizer(name).ladder.bits).index(b)] for name, b in widths.items()
        )

    search = make_search(q, budget, loss, evaluations)
    search.run()
    return search


def favourite(q: probq.Quantized, search: BestFirstSearch, budget: Budget | None) -> State:
    """Of all choices within the budget the most probable one, by enumeration."""
    energy = energy_of_choices(q, search.space, search.losses)
    assert energy is not None
    states = list(itertools.product(*(range(len(options)) for options in search.space.options)))
    if budget is not None:
        limit = budget.absolute(q.layers)
        states = [s for s in states if costs.total(q.layers, search.space.widths(s)) <= limit]
    return min(states, key=lambda s: energy(search.space.widths(s)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget", [None, Budget(percent=1.0)])
def test_the_favourite_of_the_law_was_measured(budget: Budget | None, seed: int) -> None:
    q = quantized()
    search = searched(q, budget, seed)
    before = dict(search.losses)
    best = measure_favourites(q, search, budget)
    assert best == search.best == min(search.losses, key=search.losses.__getitem__)
    assert before.items() <= search.losses.items()
    assert len(search.losses) <= 60
    assert len(search.losses) == 60 or favourite(q, search, budget) in search.losses
    assert all(search.space.keeps(state) for state in search.losses)


def test_steps_leave_one_evaluation_in_five() -> None:
    q, budget, measured = quantized(), Budget(percent=1.0), itertools.count()
    search = make_search(q, budget, lambda widths: -float(next(measured)), 20)  # each step helps
    search.run()
    assert len(search.losses) == 16
    measure_favourites(q, search, budget)
    assert len(search.losses) <= 20


def test_gates_of_channels_have_no_favourite() -> None:
    q = quantized("channel")
    search = make_search(q, None, lambda widths: float(sum(np.sum(b) for b in widths.values())), 10)
    search.run()
    before = dict(search.losses)
    assert measure_favourites(q, search, None) == search.best
    assert search.losses == before
