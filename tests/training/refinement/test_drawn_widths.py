"""Weights trained at drawn widths: which choices they serve, and what a fit does with them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import probq
from probq import Plan
from probq.codebooks import ladder
from probq.decisions.held_gates import hold_gates
from probq.decisions.within_budget import with_widths
from probq.training.refinement.decide import drawn_choices
from probq.training.refinement.experts.drawn_widths import train_at_drawn_widths

BUDGET = probq.Budget(percent=3)


@pytest.fixture
def task() -> tuple[probq.Quantized, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    y = torch.arange(96) % 3
    x = torch.rand(96, 2) / 2 + torch.eye(3, 2)[y] / 2
    plan = Plan(weight=ladder(0, 1, 2, 4), input=ladder(2, 4, 8, signed=False))
    q = probq.quantize(net, x, plan, likelihood=probq.likelihoods.categorical)
    probq.fit(q, [(x, y)], BUDGET, 2, seed=0, progress=False)
    return q, x, y


def test_they_serve_all_choices_better_than_before(task: tuple[Any, ...]) -> None:
    q, x, y = task
    hold_gates(q, BUDGET)
    before, random = {n: t.clone() for n, t in q.state_dict().items()}, torch.get_rng_state()
    choices = drawn_choices(q, BUDGET, 200)
    trained = train_at_drawn_widths(q, [(x, y)], choices, probq.Rates(weights=3e-2), progress=False)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in q.state_dict().items())
    assert all(quantizer.fixed is None for _, quantizer in trained.named_quantizers())
    loss = [np.mean([cross_entropy(n, widths, x, y) for widths in choices[:20]]) for n in (q, trained)]
    assert loss[1] < 0.85 * loss[0]


def cross_entropy(q: probq.Quantized, widths: dict[str, Any], x: torch.Tensor, y: torch.Tensor) -> float:
    return float(F.cross_entropy(q.at(with_widths(q, widths, BUDGET))(x), y))


def test_choices_are_within_the_budget_and_know_what_the_search_left_out(task: tuple[Any, ...]) -> None:
    q, _, _ = task
    hold_gates(q, BUDGET)
    choices = drawn_choices(q, BUDGET, 200)
    assert choices == drawn_choices(q, BUDGET, 200)
    assert all(with_widths(q, widths, BUDGET).cost() <= BUDGET.absolute(q.layers) for widths in choices)
    assert {widths["0.weight"] for widths in choices} >= {1, 2}  # 0 bits would cut the network in two
    assert 0 not in {widths["0.weight"] for widths in choices}


def test_a_fit_goes_on_with_its_own_weights_where_they_cannot_be_trained(
    task: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    q, x, y = task

    def broken(*_: Any) -> Any:
        raise probq.ProbqError("the loss is nan where widths are drawn")

    fitted, monkey = [], "probq.training.refinement.refinement.train_at_drawn_widths"
    for stand_in in (broken, lambda q, *_: copy.deepcopy(q)):
        monkeypatch.setattr(monkey, stand_in)
        own = copy.deepcopy(q)
        if stand_in is broken:
            with pytest.warns(UserWarning, match="measured with the weights of the search: the loss is nan"):
                probq.fit(own, [(x, y)], BUDGET, 4, validation=[(x, y)], evaluations=8, seed=0, progress=False)
        else:
            probq.fit(own, [(x, y)], BUDGET, 4, validation=[(x, y)], evaluations=8, seed=0, progress=False)
        fitted.append(own)
    assert fitted[0].mode() == fitted[1].mode()
    assert fitted[0].energy.unary[0].tolist() == fitted[1].energy.unary[0].tolist()
