"""What all criteria of rounding errors have in common: refusals, options, and that fewer bits cost more."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import probq
from probq import Budget, Plan, ProbqError, Quantized, criteria
from probq.codebooks import ladder

CRITERIA = (criteria.hawq, criteria.mpqco, criteria.mixquant, criteria.expected_error)
X = torch.rand(60, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
DATA = [(X[:30], Y[:30]), (X[30:], Y[30:])]
PLAN = Plan(weight=ladder(2, 4, 8), input=ladder(3, 5, 8, signed=False))


def network(plan: Plan = PLAN) -> Quantized:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(net.parameters(), 0.03)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(X), Y).backward()
        optimizer.step()
    return probq.quantize(net.eval(), X, plan)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_fewer_bits_cost_more_and_the_network_stays(criterion: Any) -> None:
    q = network(replace(PLAN, profile="shift"))  # where no gradient of a network that knows its labels is too small
    state = {name: tensor.clone() for name, tensor in q.state_dict().items()}
    random, grads = torch.get_rng_state(), [p.requires_grad for p in q.parameters()]
    with torch.inference_mode():
        energy = criterion(q, DATA, progress=False)
    for row in energy.unary:
        assert row[0] > row[1] > 0 == row[2]
    assert all(torch.equal(tensor, state[name]) for name, tensor in q.state_dict().items())
    assert [p.requires_grad for p in q.parameters()] == grads
    assert torch.equal(random, torch.get_rng_state())
    assert not q.calibrated
    again = criterion(q, DATA, progress=False)
    for one, other in zip(energy.unary, again.unary, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert probq.allocate(q, energy, Budget(percent=3)).percent() <= 3


@pytest.mark.parametrize("criterion", CRITERIA)
def test_of_leaves_others_at_0(criterion: Any) -> None:
    q = network()
    whole = criterion(q, DATA, progress=False)
    for of in ("weights", "inputs"):
        part = criterion(q, DATA, of=of, progress=False)
        for name, row, all_row in zip(whole.names, part.unary, whole.unary, strict=True):
            if (name in q.weight_names) != (of == "weights"):
                assert not row.any()
            elif criterion is not criteria.hawq:  # whose random vectors are others
                np.testing.assert_allclose(row, all_row, rtol=1e-5)
            else:
                assert row[0] > 0


@pytest.mark.parametrize("criterion", CRITERIA)
def test_examples_are_the_first_ones(criterion: Any) -> None:
    q = network()
    next(probq.steps(q, DATA, epochs=1))  # sets the scales of inputs
    few = criterion(q, DATA, examples=40, progress=False)
    cut = criterion(q, [(X[:30], Y[:30]), (X[30:40], Y[30:40])], progress=False)
    for one, other in zip(few.unary, cut.unary, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("gates", ["channel", "weight"])
def test_gates_of_channels_and_weights_are_on_one_rung_together(criterion: Any, gates: Any) -> None:
    plan = Plan(weight=ladder(2, 4, 8), scales="tensor", profile="shift")  # as weights with gates have it
    fine = replace(plan, gates=gates)
    whole, parts = criterion(network(plan), DATA, progress=False), criterion(network(fine), DATA, progress=False)
    for one, other in zip(whole.unary, parts.unary, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_bad_input_is_told(criterion: Any) -> None:
    name = criterion.__name__
    with pytest.raises(ProbqError, match=f"criteria.{name} needs data"):
        criterion(network(), [], progress=False)
    with pytest.raises(ProbqError, match="examples"):
        criterion(network(), DATA, examples=0, progress=False)
    with pytest.raises(ProbqError, match="no quantizer has a choice"):
        criterion(network(Plan(weight=ladder(8), input=ladder(8, signed=False))), DATA, progress=False)
    with pytest.raises(ProbqError, match="with a posterior"):
        criterion(nn.Linear(2, 2), DATA, progress=False)
    broken = network()
    with torch.no_grad():
        broken.net[5].bias[0] = math.nan
    if criterion is not criteria.mixquant:  # which looks at no output
        with pytest.raises(ProbqError, match="invalid values"):
            criterion(broken, DATA, progress=False)
        with pytest.raises(ProbqError, match="seed"):
            criterion(network(), DATA, seed=-1, progress=False)


def test_criteria_differ() -> None:
    energies = [criterion(network(), DATA, progress=False) for criterion in CRITERIA]
    for one, other in itertools.combinations(energies, 2):
        assert not np.allclose(np.concatenate(one.unary), np.concatenate(other.unary), rtol=1e-2)
