"""The expert whose weights are trained at drawn widths: what it trains, measures, and says."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import probq
from probq import Plan
from probq.codebooks import ladder
from probq.decisions.within_budget import with_widths
from probq.training.refinement.decide import drawn_states, make_search
from probq.training.refinement.evidence.evidence import measured_effects, scores
from probq.training.refinement.evidence.opinions import sums
from probq.training.refinement.experts.ask import ask_experts
from probq.training.refinement.experts.drawn_widths import train_at_drawn_widths
from probq.utils.batches import Batches

BUDGET = probq.Budget(percent=3)
RATES = probq.Rates(weights=1e-2)


@pytest.fixture
def task() -> tuple[probq.Quantized, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    y = torch.arange(96) % 3
    x = torch.rand(96, 2) / 2 + torch.eye(3, 2)[y] / 2
    plan = Plan(weight=ladder(1, 2, 4), input=ladder(2, 4, 8, signed=False))
    q = probq.quantize(net, x, plan, likelihood=probq.likelihoods.categorical)
    probq.fit(q, [(x, y)], BUDGET, 2, seed=0, progress=False)
    return q, x, y


def test_losses_say_what_a_regression_on_losses_measured_by_hand_says(task: tuple[Any, ...]) -> None:
    q, x, y = task
    data, own = [(x, y)], make_search(q, BUDGET, lambda widths: 0.0, 20).space
    states = drawn_states(q, own, BUDGET, 60)
    before, random = {n: t.clone() for n, t in q.state_dict().items()}, torch.get_rng_state()
    found = ask_experts(q, data, Batches(data, q.device), own, states, RATES, 20, progress=False)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in q.state_dict().items())
    drawn = [own.widths(states[k]) for k in np.random.default_rng(0).integers(60, size=20)]
    trained = train_at_drawn_widths(q, data, drawn, RATES, progress=False)
    chosen = own.spending(states)[:12]
    losses = []
    for state in chosen:
        fixed = trained.at(with_widths(trained, own.widths(tuple(state)), BUDGET))
        losses.append(float(F.cross_entropy(fixed(x), y)))
    flat = replace(own, log_probs=tuple(np.zeros(len(o)) for o in own.options))
    expected = measured_effects(flat, chosen, scores(np.array(losses))).rows
    assert np.allclose(sums(found[-1], chosen), sums(expected, chosen), atol=1e-4)
    energy = probq.criteria.search(trained, data, steps=40, progress=False)
    for state in chosen:
        assert np.isclose(sums(found[0], state[None])[0], energy(own.widths(tuple(state))))


def test_weights_serve_all_choices_better_than_before(task: tuple[Any, ...]) -> None:
    q, x, y = task
    own = make_search(q, BUDGET, lambda widths: 0.0, 20).space
    widths = [own.widths(state) for state in drawn_states(q, own, BUDGET, 200)]
    trained = train_at_drawn_widths(q, [(x, y)], widths, probq.Rates(weights=3e-2), progress=False)
    loss = [
        np.mean([float(F.cross_entropy(n.at(with_widths(n, w, BUDGET))(x), y)) for w in widths[:20]])
        for n in (q, trained)
    ]
    assert loss[1] < 0.85 * loss[0]


def test_criteria_speak_alone_where_the_copy_cannot_be_trained(task: tuple[Any, ...]) -> None:
    q, x, y = task
    own, data = make_search(q, BUDGET, lambda widths: 0.0, 20).space, [(x, y)]
    broken = copy.deepcopy(q)
    with torch.no_grad():
        broken.net[0].weight.fill_(torch.nan)
    states, held_out = drawn_states(q, own, BUDGET, 60), Batches(data, q.device)
    with pytest.warns(UserWarning, match="no say in the widths"):
        assert ask_experts(broken, data, held_out, own, states, RATES, 4, progress=False) == []
