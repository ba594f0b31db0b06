"""Layers that are called several times, norms that several layers meet and weights of two layers share channels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import probq
from probq import ProbqError
from probq.network.channels.groups import channel_groups

X = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))


class Parts(nn.Module):
    """Two layers of five channels, and two that read them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 3)
        self.again, self.norm = nn.Linear(5, 5), nn.BatchNorm1d(5)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.eval()


class CalledAgain(Parts):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        for _ in range(3):
            x = torch.relu(self.again(x))
        return self.c(x)


class ReadInTurn(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.a(x))) + self.c(torch.tanh(self.b(x)))


class NormedAlike(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.norm(self.a(x))) + self.d(self.norm(self.b(x)))


class OneWeight(Parts):
    def __init__(self) -> None:
        super().__init__()
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.a(x))) + self.d(torch.tanh(self.b(x)))


class OneReadingWeight(OneWeight):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(4, 5)
        self.d.weight = self.c.weight


CASES = {CalledAgain: "again", ReadInTurn: "b", NormedAlike: "b", OneWeight: "b", OneReadingWeight: "b"}


@pytest.mark.parametrize(("kind", "other"), CASES.items(), ids=[kind.__name__ for kind in CASES])
def test_they_change_together(kind: type[Parts], other: str) -> None:
    net = kind()
    found = channel_groups(net, X)
    assert found["a"] is found[other]
    assert found["a"].makers == ("a", other)
    wide, small = probq.widen(net, X, {other: 8}), probq.narrow(net, X, {"a": [3, 0]})
    with torch.no_grad():
        torch.testing.assert_close(wide(X), net(X), atol=1e-5, rtol=0)
    assert channel_groups(wide, X)["a"].count == 8
    for one in (wide, small):
        assert (one.a.weight is one.b.weight) == (net.a.weight is net.b.weight)
        assert (one.c.weight is one.d.weight) == (net.c.weight is net.d.weight)
    with torch.no_grad():  # by hand: the channels that went are zeros for those who read them
        gone = [1, 2, 4]
        for layer in (net.c, net.d, net.again):
            layer.weight[:, gone] = 0
        torch.testing.assert_close(small(X), net(X))


class AlsoTheInput(Parts):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(x) + self.c(self.a(x))


class WithoutGradients(Parts):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.a(x)))


class Counted(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x) * torch.linspace(0, 1, 5))


class OneBias(OneWeight):
    def __init__(self) -> None:
        super().__init__()
        self.b.weight = nn.Parameter(torch.rand(5, 4))
        self.b.bias = self.a.bias


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (AlsoTheInput, "c also reads what comes from no layer"),
        (WithoutGradients, "no layer is known to read them"),
        (Counted, "which meet numbers that belong to no layer, or code that counts them"),
        (OneBias, r"a\.bias is also b\.bias, and would not be with other channels of a"),
    ],
)
def test_what_cannot_change_is_told(kind: type[Parts], sentence: str) -> None:
    with pytest.raises(ProbqError, match=sentence):
        probq.widen(kind(), X, {"a": 8})
    with pytest.raises(ProbqError, match=sentence):
        probq.narrow(kind(), X, {"a": [0, 1]})
