"""Energies against finite differences of log-probabilities, and against the Fisher information known by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probq
from probq import Plan, Quantized, criteria
from probq.codebooks import ladder
from probq.criteria.measuring.ready import with_scales
from probq.likelihoods import Normal

X, Y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
STEP = 1e-4


def network(tied: bool) -> Quantized:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    bits = ladder(2, 8, signed=True)
    plan = Plan(weight=bits, input=bits, network_input=bits, tie_weight="all" if tied else None)
    if tied:
        plan = replace(plan, tie_input="all")  # the same name: one width for weights and inputs
    return with_scales(probq.quantize(net, X, plan), [(X, Y)])


def nearest(value: Tensor, scale: Tensor, bits: int) -> Tensor:
    top = 2 ** (bits - 1) - 1
    return scale * torch.floor(value / scale + 0.5).clamp(-top, top)


def differences(q: Quantized, name: str, rung: int) -> Tensor:
    """The derivative of each example's log-probability along a rounding error, by central differences in float64."""
    first, _, last = q.net
    quantizer = q.quantizer(name)
    scale, bits = quantizer.scales()[rung].detach().double(), quantizer.ladder.bits[rung]
    weights = {"0.weight": first.weight.detach().double(), "2.weight": last.weight.detach().double()}

    def moved(x: Tensor, here: str, step: float) -> Tensor:
        return x + step * (nearest(x, scale, bits) - x) if here == name else x

    def log_prob(step: float) -> Tensor:
        own = {here: moved(weight, here, step) for here, weight in weights.items()}
        hidden = torch.tanh(moved(X.double(), "0.input", step) @ own["0.weight"].T + first.bias.detach().double())
        output = moved(hidden, "2.input", step) @ own["2.weight"].T + last.bias.detach().double()
        return torch.log_softmax(output, -1)[torch.arange(len(X)), Y]

    return (log_prob(STEP) - log_prob(-STEP)) / (2 * STEP)


@pytest.mark.parametrize("tied", [False, True])
def test_energies_are_squares_of_finite_differences(tied: bool) -> None:
    q = network(tied)
    energy = criteria.mpqco(q, [(X[:3], Y[:3]), (X[3:], Y[3:])], progress=False)
    assert energy.label == "mpqco"
    groups = {name: [name] for name in energy.names}
    for name, site in q.sites.items():
        groups[site].append(name)
    assert len(groups) == (2 if tied else 4)  # what enters the network is tied to nothing
    for name, row in zip(energy.names, energy.unary, strict=True):
        along = [sum(differences(q, own, k) for own in groups[name]) for k in range(2)]
        costs = [float(a.square().mean()) / 2 for a in along]  # type: ignore[union-attr]
        np.testing.assert_allclose(row, [costs[0] - costs[1], 0], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("sd", [0.5, 2.0])
def test_without_labels_it_is_the_information_of_the_likelihood(sd: float) -> None:
    count = 600
    x = torch.full((count, 1), 0.8)
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(0.4)
    q = probq.quantize(net, x, Plan(weight=ladder(1, 8)), likelihood=Normal(sd))
    energy = criteria.mpqco(q, [x], seed=0, progress=False)
    scales = q.weights[".weight"].scales().flatten().tolist()
    errors = [scales[0] - 0.4, scales[1] * round(0.4 / scales[1]) - 0.4]  # 1 bit has -1 and 1
    expected = [(error * 0.8) ** 2 / sd**2 / 2 for error in errors]
    # the square of a normal number errs by sqrt(2) of its mean
    assert energy.unary[0][0] == pytest.approx(expected[0] - expected[1], rel=4 * (2 / count) ** 0.5)
    assert expected[0] > 10 * expected[1]


def test_labels_that_are_drawn_are_those_of_the_seed() -> None:
    q = network(tied=False)
    random = torch.get_rng_state()
    one, same, other = (criteria.mpqco(q, [X], seed=seed, progress=False) for seed in (1, 1, 2))
    assert torch.equal(random, torch.get_rng_state())
    assert all(map(np.array_equal, one.unary, same.unary))
    assert not all(map(np.array_equal, one.unary, other.unary))
