"""Orthogonality by explicit cross-products of features, and cases known by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import probq
from probq import Plan, ProbqError, criteria
from probq.codebooks import ladder
from probq.criteria.measuring.energies import importance_energy
from probq.criteria.ompq import orthogonality

PLAN = Plan(weight=ladder(2, 4, 8), input=ladder(4, 8, signed=True))
X = torch.randn(20, 2, 6, 6, generator=torch.Generator().manual_seed(0))


class Mixed(nn.Module):
    """A convolution, an activation in place behind it, a layer that is called twice, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.twice, self.head = nn.Conv2d(2, 3, 3), nn.Linear(3, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x), inplace=True).mean((2, 3))
        return self.head(F.relu(self.twice(F.relu(self.twice(x)))))


def test_importance_is_that_of_explicit_cross_products() -> None:
    torch.manual_seed(0)
    net = Mixed().eval()
    energy = criteria.ompq(probq.quantize(net, X, PLAN), [X[:13], X[13:]], beta=0.7, progress=False)
    with torch.no_grad():
        conv = net.conv(X)
        first = net.twice(F.relu(conv).mean((2, 3)))
        second = net.twice(F.relu(first))
        features = [conv.flatten(1), torch.cat([first, second], 1), net.head(F.relu(second))]
    f = [a.double().numpy() for a in features]
    norm = np.linalg.norm
    orm = [[norm(a.T @ b) ** 2 / norm(a.T @ a) / norm(b.T @ b) for b in f] for a in f]
    theta = np.array([math.exp(-0.7 * (sum(row) - row[i])) for i, row in enumerate(orm)])
    theta /= theta.max()
    found = dict(zip(energy.names, energy.unary, strict=True))
    for name, value in zip(("conv", "twice", "head"), theta, strict=True):
        np.testing.assert_allclose(found[f"{name}.weight"], value * np.array([6, 4, 0]), rtol=1e-5)
    np.testing.assert_allclose(found["head.input"], theta[2] * np.array([4, 0]), rtol=1e-5)
    assert "conv.input" not in found  # 8 bits, not learned


def test_orthogonal_features_have_0_and_the_same_ones_1() -> None:
    one, other = np.diag([1.0, 1, 0, 0]), np.diag([0, 0, 2.0, 3])
    found = orthogonality(np.stack([k @ k.T for k in (one, other, 5 * one)]), ["a", "b", "c"])
    np.testing.assert_allclose(found, [[1, 0, 1], [0, 1, 0], [1, 0, 1]], atol=1e-15)


def test_features_are_not_centred() -> None:
    constant, centred = np.ones((4, 1)), np.array([[1.0], [-1], [1], [-1]])
    grams = np.stack([constant @ constant.T, centred @ centred.T, (constant + centred) @ (constant + centred).T])
    np.testing.assert_allclose(orthogonality(grams, list("abc"))[2], [0.5, 0.5, 1])


def test_a_quantizer_that_serves_several_layers_has_the_sum() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    net[4].weight = net[0].weight  # one tensor, two layers
    tied = Plan(weight=ladder(2, 8), input=ladder(4, 8, signed=False), tie_input="all")
    q = probq.quantize(net, torch.rand(4, 3), tied)
    energy = importance_energy(q, {"0": 1.0, "2": 10.0, "4": 100.0}, "both", "test")
    found = {name: row.tolist() for name, row in zip(energy.names, energy.unary, strict=True)}
    assert found == {"0.weight": [606.0, 0.0], "2.weight": [60.0, 0.0], "2.input": [440.0, 0.0]}
    inputs = importance_energy(q, {"0": 1.0, "2": 10.0, "4": 100.0}, "inputs", "test")
    assert [row.tolist() for row in inputs.unary] == [[0.0, 0.0], [0.0, 0.0], [440.0, 0.0]]


def test_bad_input_is_told() -> None:
    torch.manual_seed(0)
    net = Mixed().eval()
    q = probq.quantize(net, X, PLAN)
    with pytest.raises(ProbqError, match="2 or more, better 32"):
        criteria.ompq(q, [X[:1]], progress=False)
    with pytest.raises(ProbqError, match="beta is a positive number"):
        criteria.ompq(q, [X], beta=0, progress=False)
    with pytest.raises(ProbqError, match="inputs of one size"):
        criteria.ompq(q, [X, X[..., :5]], progress=False)
    with pytest.raises(ProbqError, match="needs data"):
        criteria.ompq(q, [], progress=False)
    fixed = probq.quantize(net, X, probq.uniform(8, 8))
    with pytest.raises(ProbqError, match="no quantizer has a choice"):
        criteria.ompq(fixed, [X], progress=False)
    with torch.no_grad():
        net.twice.weight.zero_()
        net.twice.bias.zero_()
    with pytest.raises(ProbqError, match="twice gives nothing but zeros"):
        criteria.ompq(probq.quantize(net, X, PLAN), [X], progress=False)


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_outputs_without_examples_in_front_are_told() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x.transpose(0, 1)).transpose(0, 1)).mean(1)

    x = torch.rand(4, 5, 3)
    with pytest.raises(ProbqError, match=r"one has the shape \(5, 4, 3\) for 4 examples"):
        criteria.ompq(probq.quantize(Turned(), x, PLAN), [x], progress=False)
