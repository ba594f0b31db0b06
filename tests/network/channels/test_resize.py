"""Networks with more channels compute the same, those with fewer compute what zeroed readers do."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import probq
from probq import ProbqError
from probq.network.channels.groups import channel_groups
from probq.testing.deployed import deployed

CAN_WIDEN = ("mobilenet v2", "resnet", "autoencoder, transposed", "functions", "pre-activation resnet", "efficientnet",
             "squeeze and excitation", "mlp-mixer", "attention u-net")  # fmt: skip


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.second, self.last = nn.ConvTranspose2d(4, 5, 2), nn.Linear(5 * 49, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.last(torch.tanh(self.second(x)).flatten(1))


def trained() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net, x = Small(), torch.rand(6, 2, 8, 8)
    for _ in range(3):
        net(x)  # statistics of batch normalisation
    return net.eval(), x


@pytest.mark.parametrize("name", CAN_WIDEN)
def test_wider_networks_compute_the_same(name: str) -> None:
    net, x = next((net, x) for own, net, x in deployed() if own == name)
    net.eval()
    free = {layer: group.count + 3 for layer, group in channel_groups(net, x).items() if not group.fixed}
    assert free
    wide = probq.widen(net, x, free)
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(wide(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    counts = channel_groups(wide, x)
    assert all(counts[layer].count == count for layer, count in free.items())
    assert sum(p.numel() for p in wide.parameters()) > sum(p.numel() for p in net.parameters())


def test_copies_of_a_channel_go_apart_in_training() -> None:
    net, x = trained()
    wide = probq.widen(net, x, {"first": 8})
    assert torch.equal(wide.first.weight[:4], net.first.weight)
    wide(x).square().sum().backward()
    copies = [k for k in range(4, 8) if torch.equal(wide.first.weight[k], wide.first.weight[0])]
    others = copies or [next(k for k in range(4, 8))]
    original = next(k for k in range(4) if torch.equal(wide.first.weight[k], wide.first.weight[others[0]]))
    assert not torch.allclose(wide.first.weight.grad[original], wide.first.weight.grad[others[0]])


@pytest.mark.parametrize("kept", [{"first": [2, 0]}, {"second": [4, 1, 3]}, {"first": [1], "second": [0, 2]}])
def test_narrower_networks_read_zeros_from_the_channels_that_went(kept: Mapping[str, Sequence[int]]) -> None:
    net, x = trained()
    small, zeroed = probq.narrow(net, x, kept), copy.deepcopy(net)
    with torch.no_grad():
        gone = [k for k in range(4) if "first" in kept and k not in kept["first"]]
        zeroed.second.weight[gone] = 0
        gone = [k for k in range(5) if "second" in kept and k not in kept["second"]]
        zeroed.last.weight.view(3, 5, 49)[:, gone] = 0
        torch.testing.assert_close(small(x), zeroed(x))
    assert all(channel_groups(small, x)[name].count == len(own) for name, own in kept.items())


def test_a_wider_network_goes_all_the_way() -> None:
    net, x = trained()
    wide = probq.widen(net, x, {"first": 7, "second": 6})
    q = probq.quantize(wide, x, likelihood=probq.likelihoods.categorical)
    model = probq.lower(q, q.mode())
    assert model(x.numpy()).shape == (6, 3)


BAD: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("widen", {"none": 4}, "knows no layer 'none'; there are first, second, last"),
    ("widen", {"last": 4}, "outputs of the network"),
    ("widen", {"first": 3}, "has 4 channels; widen takes that number or more, not 3"),
    ("widen", {"first": 4.5}, "not 4.5"),
    ("narrow", {"first": []}, "narrow takes those to keep"),
    ("narrow", {"first": [0, 0]}, "each once"),
    ("narrow", {"first": [4]}, "from 0 to 3"),
)


@pytest.mark.parametrize(("function", "given", "sentence"), BAD)
def test_what_cannot_be_is_told(function: str, given: dict[str, Any], sentence: str) -> None:
    net, x = trained()
    with pytest.raises(ProbqError, match=sentence):
        getattr(probq, function)(net, x, given)


def test_layers_of_one_group_take_one_number() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x) + self.b(x))

    with pytest.raises(ProbqError, match=r"(a|b) widens together with (a|b)"):
        probq.widen(Sum(), torch.rand(2, 3), {"a": 5, "b": 6})
    with pytest.raises(ProbqError, match="the same channels as"):
        probq.narrow(Sum(), torch.rand(2, 3), {"a": [0], "b": [1]})
