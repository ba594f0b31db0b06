"""Batch normalisation that comes with an activation is folded; what is not folded is refused with its true reason."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import probq

X = torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(3))
Y = torch.randint(3, (32,), generator=torch.Generator().manual_seed(4))


class NormAct(nn.BatchNorm2d):
    """Normalisation, dropout and activation in one module, as image model libraries write it."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.1), act

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        x = F.batch_norm(x, mean, variance, self.weight, self.bias, self.training, self.momentum, self.eps)
        return self.act(self.drop(x))


class SuperAct(nn.BatchNorm2d):
    """The same, of what `torch.nn` computes."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(super().forward(x))


class Residual(nn.BatchNorm2d):
    """Adds its input, so that nothing can be folded."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _net(first: nn.Module, second: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 4, 3), first, nn.Conv2d(4, 4, 3, bias=False), *([second] if second else [])]
    net = nn.Sequential(*body, nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        for _ in range(3):
            net.train()(X)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return net


FOLDED = {
    "relu": lambda: _net(NormAct(4, nn.ReLU()), NormAct(4, nn.Identity())),
    "relu in place": lambda: _net(NormAct(4, nn.ReLU(inplace=True))),
    "of super": lambda: _net(SuperAct(4), nn.BatchNorm2d(4)),
    "a table": lambda: _net(NormAct(4, nn.SiLU())),
}


@pytest.mark.parametrize("make", FOLDED.values(), ids=FOLDED.keys())
@pytest.mark.parametrize("profile", ["shift", "dyadic"])
def test_normalisation_with_an_activation_is_folded(make: Callable[[], nn.Sequential], profile: str) -> None:
    net = make()
    q = probq.quantize(net, X, probq.Plan(weight=probq.codebooks.ladder(8), profile=profile))
    norms = [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert [layer.norm for layer in q.layers if layer.norm] == norms
    probq.fit(q, [(X, Y)] * 2, epochs=2, seed=0, progress=False)
    model = probq.lower(q)
    with torch.no_grad():
        out = q(X).double()
    assert torch.equal(torch.tensor(model(X.numpy()) * model.output_scale), out)


def test_a_folded_activation_wrapper_equals_algebra_by_hand() -> None:
    net = _net(NormAct(4, nn.ReLU())).eval()
    q = probq.quantize(net, X, probq.uniform(12, 12, network_input=probq.codebooks.ladder(12), profile="shift"))
    conv, norm = net[0], net[1]
    gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).double()
    weight = conv.weight.double() * gain[:, None, None, None]
    bias = (conv.bias.double() - norm.running_mean.double()) * gain + norm.bias.double()
    h = torch.relu(F.conv2d(X.double(), weight, bias))
    expected = net[4].double()(net[2].double()(h).flatten(1))
    with torch.no_grad():
        assert torch.allclose(q(X).double(), expected, atol=5e-3)


def test_a_wrapper_that_computes_more_is_a_step_of_its_own() -> None:
    net = _net(Residual(4))
    q = probq.quantize(net, X)
    assert not any(layer.norm for layer in q.layers)
    model = probq.lower(q)
    assert torch.equal(torch.tensor(model(X) * model.output_scale), q(X.double()))


class Own(nn.Module):
    """Modules and a forward given as a function."""

    def __init__(self, forward: Callable[..., Tensor], layers: str = "ah", **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.own, self.n = forward, nn.BatchNorm1d(4, **options)
        for name in layers:
            self.add_module(name, nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


def _tied() -> Own:
    net: Any = Own(lambda net, x: net.h(net.n(net.b(net.a(x).relu()))), "abh")
    net.b.weight = net.a.weight
    return net


def test_statistics_of_each_batch_are_refused() -> None:
    net = Own(lambda net, x: net.h(net.n(net.a(x))), track_running_stats=False)
    with pytest.warns(UserWarning, match="takes the statistics of each batch"):
        q = probq.quantize(net, torch.randn(32, 4))
    with pytest.raises(probq.ProbqError, match="takes the statistics of each batch"):
        probq.lower(q)
