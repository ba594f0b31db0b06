"""Functions that are called are what their modules are: tables between two roundings, in every place."""

import numpy as np
import pytest
import torch
from exact_integers import assert_exact
from torch import nn
from torch.nn import functional as F

import probq
from probq.codebooks import ladder

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A layer, a function, and a layer."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.function = nn.Linear(6, 8), nn.Linear(8, 3), function

    def forward(self, x):
        return self.b(self.function(self.a(x)))


MODULES = {
    "gelu": (lambda x: F.gelu(x, approximate="tanh"), nn.GELU("tanh")),
    "silu": (lambda x: F.silu(x, inplace=True), nn.SiLU()),
    "hardswish": (F.hardswish, nn.Hardswish()),
    "hardsigmoid": (F.hardsigmoid, nn.Hardsigmoid()),
    "softplus": (lambda x: F.softplus(x, 2.0), nn.Softplus(2.0)),
    "elu": (lambda x: F.elu_(x, 0.5), nn.ELU(0.5)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), nn.LeakyReLU(0.2)),
    "sigmoid": (torch.sigmoid, nn.Sigmoid()),
    "tanh": (lambda x: x.tanh_(), nn.Tanh()),
}


@pytest.mark.parametrize(("function", "module"), MODULES.values(), ids=MODULES)
def test_a_function_has_the_integers_of_its_module(function, module):
    models = [probq.lower(probq.quantize(Net(one).eval(), X)) for one in (function, module)]
    assert np.array_equal(models[0](3 * X), models[1](3 * X))
    assert models[0].output_scale == models[1].output_scale


FUNCTIONS = {
    "selu": F.selu, "celu": F.celu, "mish": F.mish, "softsign": F.softsign, "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink, "softshrink": F.softshrink, "hardshrink": F.hardshrink,
    "threshold": lambda x: F.threshold(x, 0.1, -0.2), "exp": torch.exp, "erf": torch.erf, "square": torch.square,
    "power": lambda x: x**3, "sums so far": lambda x: torch.cumsum(x, 1),
    "log of sums": lambda x: x - x.logsumexp(1, True), "cut and padded": lambda x: F.pad(x, (2, -2)),
    "twice": lambda x: torch.tanh(torch.sigmoid(x) + F.silu(x)),
}  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_integers_are_what_the_network_computes(function, tmp_path):
    net = Net(function).eval()
    q = probq.quantize(net, X)
    model = assert_exact(q, torch.cat([X, 3 * X]), tmp_path)
    q.save(tmp_path / "q.safetensors")
    assert probq.lower(probq.load(tmp_path / "q.safetensors", net)).sha256() == model.sha256()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_with_wide_codebooks_they_are_nearly_those_of_the_network(name):
    net = Net(FUNCTIONS[name]).eval()
    bits = 8 if name == "log of sums" else 12  # the difference of fine steps and coarse ones would leave 31 bits
    wide = probq.Plan(weight=ladder(bits), input=ladder(bits), network_input=ladder(bits), activation=bits)
    model = probq.lower(probq.quantize(net, X, plan=wide))
    exact = net(X).detach().numpy()
    assert np.abs(model(X) * model.output_scale - exact).max() < 0.02 * np.abs(exact).max()
