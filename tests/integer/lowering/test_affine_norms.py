"""Batch normalisation that folds into no layer: the same integers in every place, by hand, and trained."""

import numpy as np
import pytest
import torch
from exact_integers import assert_exact
from small_fits import trained_on_digits
from torch import nn
from torch.nn import functional as F

import probq
from probq.codebooks import ladder
from probq.network.quantizers.affine_norms import affine_norms
from probq.testing.deployed_blocks import PreActivation

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(3))


def tilted(net):
    """Statistics as after training; some gains are negative, one channel is dead."""
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean, 0, 0.3)
        nn.init.uniform_(norm.running_var, 0.2, 2)
        nn.init.normal_(norm.weight, 0.5, 0.6)
        nn.init.normal_(norm.bias, 0, 0.3)
        norm.weight.data[0] = 0
    return net.eval()


class Own(nn.Module):
    """Layers a, b, h, a normalisation n, and a forward given as a function."""

    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.own, self.n = forward, nn.BatchNorm1d(4)
        self.a, self.b, self.h = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        return self.own(self, x)


PLACES = {
    "behind a clip": lambda net, x: net.h(net.n(net.b(net.a(x)).relu())),
    "called twice": lambda net, x: net.h(net.n(net.b(net.n(net.a(x)).relu()))),
    "behind a layer called twice": lambda net, x: net.b(net.h(net.n(net.a(net.a(x).relu())))),
    "behind what is used elsewhere": lambda net, x: (lambda y: net.h(net.n(y) + y))(net.a(net.b(x))),
    "of a sum": lambda net, x: net.h(F.relu6(net.n(net.a(x) - net.b(x)))),
    "of an average": lambda net, x: net.h(net.n((net.a(x) + net.b(x)) / 3)),
    "on itself": lambda net, x: net.h(net.n(net.n(net.a(x) + net.b(x)))),
    "at the end": lambda net, x: net.n(net.h(net.a(x)) + net.b(x)),
}


@pytest.mark.parametrize("profile", ["shift", "dyadic"])
@pytest.mark.parametrize("forward", PLACES.values(), ids=PLACES)
def test_integers_are_what_the_network_computes_in_every_place(forward, profile, tmp_path):
    q = probq.quantize(tilted(Own(forward)), X, probq.Plan(profile=profile))
    assert_exact(q, torch.cat([X, 3 * X]), tmp_path)


def test_one_channel_by_hand():
    """Sums in steps of 2^-14 meet a gain of 3 / 4 and a shift of -1 / 8; what comes out is in steps of 2^-12."""
    layer, norm = nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1, eps=0.0)
    nn.init.constant_(layer.weight, 127 * 2.0**-7)
    nn.init.constant_(norm.running_var, 16 / 9)
    nn.init.constant_(norm.running_mean, 1 / 6)
    net = nn.Sequential(layer, nn.ReLU(), norm, nn.ReLU()).eval()
    x = (torch.arange(128.0) / 128).unsqueeze(1)
    plan = probq.Plan(weight=ladder(8), network_input=ladder(8, signed=True), profile="shift")
    model = probq.lower(probq.quantize(net, x, plan))
    (node,) = [node for node in model.nodes if node.name == "2"]
    sums = model.values(model.quantize_input(x))[node.inputs[0]]
    assert np.array_equal(sums[:, 0], 127 * np.arange(128))
    values = np.floor((sums * 3 / 4 * 2.0**-14 - 1 / 8) * 2**12 + 1 / 2).clip(0)
    assert model.output_scale == 2.0**-12
    assert np.array_equal(model(x), values)


@pytest.mark.parametrize("profile", ["shift", "dyadic"])
def test_a_network_of_preactivations_is_trained_to_its_integers(profile, tmp_path):
    torch.manual_seed(0)
    blocks = [PreActivation(8, 8, 1), PreActivation(8, 12, 2), nn.BatchNorm2d(12), nn.ReLU()]
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)
    )
    x, y, batches = trained_on_digits(net, 0.01, 3)
    q = probq.quantize(net, x[:64], probq.Plan(profile=profile))
    before = net[3].weight.detach().clone()
    probq.fit(q, batches, probq.Budget(percent=4), epochs=3, seed=0, progress=False)
    model = probq.lower(q)
    assert not torch.equal(q.net.get_parameter("3.weight"), before)  # the gain of a step of its own learns too
    assert np.array_equal(model(x) * model.output_scale, q(x.double()).detach().numpy())
    assert (model(x[1280:]).argmax(1) == y[1280:].numpy()).mean() > 0.5
    q.save(tmp_path / "q.safetensors")
    assert probq.lower(probq.load(tmp_path / "q.safetensors", net)).sha256() == model.sha256()


def test_the_gradient_of_a_rounded_normalisation_is_that_of_the_exact_one():
    torch.manual_seed(0)
    norm = tilted(nn.BatchNorm2d(3)).double()
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    rounded = affine_norms(nn.Sequential(norm), [])["0"](x)
    assert float((rounded - norm(x)).detach().abs().max()) < 2e-3
    found = torch.autograd.grad(rounded.square().sum(), [norm.bias])
    expected = torch.autograd.grad(norm(x).square().sum(), [norm.bias])
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-3)
