"""Rungs of 0 bits: the loss of the network without that layer, by hand, and worse than any other where it is cut."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import probq
from probq import Plan, Quantized, criteria
from probq.codebooks import ladder

PLAN = Plan(weight=ladder(0, 2, 12), input=ladder(12, signed=True), network_input=ladder(12, signed=True))
CRITERIA = {
    "loss": criteria.loss,
    "clado": criteria.clado,
    "hawq": partial(criteria.hawq, probes=8),
    "mpqco": criteria.mpqco,
    "expected_error": criteria.expected_error,
}


class Skip(nn.Module):
    """A trained network of three layers, the second of which has a path around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(x + F.relu(self.inner(x)))


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(200, 6)
    y = (x @ torch.randn(6, 3)).argmax(1)
    net = Skip()
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval(), x, y


def without(net: nn.Module, name: str, x: Tensor) -> Tensor:
    """Outputs of the float network with zeros in the place of a weight."""
    with torch.no_grad():
        return torch.func.functional_call(net, {name: torch.zeros_like(net.get_parameter(name))}, (x,))


def rows(energy: probq.Energy) -> dict[str, np.ndarray]:
    return dict(zip(energy.names, energy.unary, strict=True))


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA.keys())
def test_zero_bits_cost_what_the_network_without_the_layer_does(criterion: Any, trained: Any) -> None:
    net, x, y = trained
    q = probq.quantize(net, x, PLAN)
    before = F.cross_entropy(net(x), y).item()
    for name, row in rows(criterion(q, [(x, y)], progress=False)).items():
        expected = F.cross_entropy(without(net, name, x), y).item() - before
        assert row[0] == pytest.approx(expected, rel=0.02)
        assert name == "inner.weight" or row[0] > 3 * row[1]  # the others cut the network


@pytest.mark.parametrize("criterion", [criteria.kl, criteria.mpqco, criteria.expected_error])
def test_without_labels_it_is_the_divergence(criterion: Any, trained: Any) -> None:
    net, x, _ = trained
    q = probq.quantize(net, x, PLAN)
    log_probs = F.log_softmax(net(x), -1)
    for name, row in rows(criterion(q, [x], progress=False)).items():
        found = F.log_softmax(without(net, name, x), -1)
        assert row[0] == pytest.approx(F.kl_div(found, log_probs, log_target=True, reduction="batchmean").item(), 0.02)
        assert name == "inner.weight" or row[0] > 3 * row[1]


def test_inputs_and_tied_weights_of_zero_bits_are_measured_too(trained: Any) -> None:
    net, x, y = trained
    plan = Plan(weight=ladder(0, 12), input=ladder(0, 12, signed=True), tie_weight="all")
    q: Quantized = probq.quantize(net, x, plan)
    found = rows(criteria.mpqco(q, [(x, y)], progress=False))
    measured = rows(criteria.loss(q, [(x, y)], progress=False))
    assert list(found) == ["stem.weight", "inner.input", "head.input"]
    for name, row in found.items():
        assert row[0] == measured[name][0]
    with torch.no_grad():
        nothing = F.cross_entropy(net.head.bias.expand(len(x), 3), y) - F.cross_entropy(net(x), y)
    for name in ("stem.weight", "head.input"):
        assert found[name][0] == pytest.approx(float(nothing), rel=0.02)
