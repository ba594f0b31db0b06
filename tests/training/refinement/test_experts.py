"""Experts: what they are asked, the spread that they are given, and their say in the law, the order and a fit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import probq
from probq import Budget, Plan
from probq import cost as costs
from probq.codebooks import ladder
from probq.training.refinement.decide import drawn_choices, make_search
from probq.training.refinement.evidence.evidence import GUMBEL, energy_of_choices, measured_effects, ranked, scores
from probq.training.refinement.evidence.opinions import Experts, sums
from probq.training.refinement.evidence.space import WidthSpace
from probq.training.refinement.experts import criteria
from probq.training.refinement.experts.criteria import ask_criteria


def blobs(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around three centres, and which."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(number) % 3
    return torch.rand(number, 2, generator=generator) / 2 + torch.eye(3, 2)[y] / 2, y


def quantized(plan: Plan | None = None) -> probq.Quantized:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 3))
    plan = plan or Plan(weight=ladder(1, 2, 4), input=ladder(2, 4, 8, signed=False))
    return probq.quantize(net, torch.rand(16, 2), plan, likelihood=probq.likelihoods.categorical)


def space_of(q: probq.Quantized, budget: Budget | None = None) -> WidthSpace:
    return make_search(q, budget, lambda widths: 0.0, 10).space


def states_of(own: WidthSpace) -> np.ndarray:
    return np.array(list(itertools.product(*(range(len(options)) for options in own.options))))


def two(own: WidthSpace, seed: int = 0) -> Experts:
    """Two experts with random opinions, in units far apart."""
    generator = np.random.default_rng(seed)
    opinions = [[list(unit * generator.random(len(o))) for o in own.options] for unit in (1e-3, 50.0)]
    return Experts(opinions, states_of(own))


def test_they_are_asked_with_the_weights_of_the_network_and_leave_it_as_it_is() -> None:
    q, batches = quantized(), [blobs(64)]
    before = {name: tensor.clone() for name, tensor in q.state_dict().items()}
    state = torch.get_rng_state()
    own = space_of(q)
    found = ask_criteria(q, batches, own, 10, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in q.state_dict().items())
    energies = [probq.criteria.search(q, batches, steps=20, progress=False)]
    energies.append(probq.criteria.limpq(q, batches, steps=2, progress=False))
    for rows, energy in zip(found, energies, strict=True):
        for state in states_of(own):
            assert np.isclose(sums(rows, state[None])[0], energy(own.widths(tuple(state))))


def test_there_are_none_where_they_know_nothing() -> None:
    batches = [blobs(64)]
    for plan in (Plan(weight=ladder(1, 2), gates="channel"), probq.uniform(4, 4)):
        q = quantized(plan)
        assert ask_criteria(q, batches, space_of(q), 10, progress=False) == []
    q = quantized(Plan(weight=ladder(0, 2, 4)))  # a rung of one level has no step
    assert len(ask_criteria(q, batches, space_of(q), 10, progress=False)) == 1


def test_each_has_the_spread_of_the_rows_beside_it() -> None:
    own = space_of(quantized())
    both, rows = two(own), [np.arange(len(o), dtype=float) for o in own.options]
    expected = sums(rows, both.states).std()
    parts = [Experts([opinion], both.states).beside(rows) for opinion in both.opinions]
    for part, opinion in zip(parts, both.opinions, strict=True):
        assert np.isclose(sums(part, both.states).std(), expected)
        assert np.isclose(np.corrcoef(sums(part, both.states), sums(opinion, both.states))[0, 1], 1)
    for a, b, total in zip(*parts, both.beside(rows), strict=True):
        assert np.allclose(a + b, total)
    silent = Experts([[[1.0] * len(o) for o in own.options]], both.states)
    assert all((row == 0).all() for row in silent.beside(rows))


def measured(own: WidthSpace, number: int = 30) -> dict[tuple[int, ...], float]:
    generator, states = np.random.default_rng(1), states_of(own)
    chosen = states[generator.permutation(len(states))[:number]]
    return {tuple(map(int, s)): float(1 + generator.random() + s[0]) for s in chosen}


def test_the_law_is_that_of_the_mean_of_three_independent_estimates() -> None:
    q = quantized()
    own = space_of(q)
    losses, both, states = measured(own), two(own), states_of(own)
    effects = measured_effects(own, np.array(list(losses)), scores(np.array(list(losses.values()))))
    unit = sums(effects.rows, states).std()
    said = [sums(opinion, states) for opinion in both.opinions]
    mean = np.mean([sums(effects.rows, states), *(s * unit / s.std() for s in said)], axis=0)
    expected = np.exp(-mean / (GUMBEL * effects.error / 3**0.5))
    expected /= expected.sum()
    energy = energy_of_choices(q, own, losses, both)
    assert energy is not None
    found = np.exp([-energy(own.widths(tuple(s))) for s in states])
    assert np.allclose(found / found.sum(), expected, atol=1e-9)


def test_the_order_is_that_of_scores_and_of_what_they_add() -> None:
    own = space_of(quantized())
    losses, both = measured(own), two(own)
    assert ranked(own, losses) == sorted(losses, key=lambda s: losses[s])
    scored = scores(np.array(list(losses.values())))
    effects = measured_effects(own, np.array(list(losses)), scored)
    added = both.beside(effects.rows)
    total = {s: scored[k] + sum(row[o] for row, o in zip(added, s, strict=True)) for k, s in enumerate(losses)}
    assert ranked(own, losses, both) == sorted(losses, key=total.__getitem__)
    alike = dict.fromkeys(losses, 1.0)  # nothing can be learned from these
    assert ranked(own, alike, both) == ranked(own, alike)


@pytest.mark.parametrize("percent", [1.0, 3.0, None])
def test_spreads_are_over_choices_that_spend_the_budget(percent: float | None) -> None:
    q = quantized()
    budget = None if percent is None else Budget(percent=percent)
    own = space_of(q, budget)
    states = own.spending([own.state(widths) for widths in drawn_choices(q, budget, 400)])
    assert len(states) >= 20
    if budget is not None:
        spent = [costs.total(q.layers, own.widths(tuple(s))) / budget.absolute(q.layers) for s in states]
        assert max(spent) <= 1
        assert min(spent) >= 0.75


def test_a_fit_asks_them_once_after_its_search(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []

    def spy(q: probq.Quantized, batches: Any, own: WidthSpace, evaluations: int, progress: bool) -> Any:
        calls.append((evaluations, sum(len(y) for _, y in batches)))
        return ask_criteria(q, batches, own, evaluations, progress)

    monkeypatch.setattr("probq.training.refinement.refinement.ask_criteria", spy)
    monkeypatch.setattr(criteria, "SEARCHING", 1.0)
    q, budget, (x, y) = quantized(), Budget(percent=2.0), blobs(700)
    batches = list(zip(x.split(100), y.split(100), strict=True))
    probq.fit(q, batches, budget, 4, validation=[(x[:64], y[:64])], evaluations=12, seed=0, progress=False)
    assert calls == [(12, 512)]
    assert q.mode(budget).cost() <= budget.absolute(q.layers)
