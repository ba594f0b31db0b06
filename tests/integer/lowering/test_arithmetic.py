"""Differences, negations, and products, quotients and sums with constants: exact integers, or a refusal."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import probq
from probq.codebooks import ladder

VECTORS, IMAGES = torch.randn(64, 8), torch.rand(16, 1, 8, 8)
OFFSETS = torch.tensor([0.5, -0.25, 0.0, 1.0, -3.0, 0.125, 2.0, 8.0])
POWERS = torch.tensor([1.0, 0.5, 2.0, -4.0, 0.0, 1.0, 0.25, -1.0])


class Net(nn.Module):
    """Two layers, a function of what they compute, and a layer that reads it."""

    def __init__(self, function, head=True, images=False):
        super().__init__()
        torch.manual_seed(0)
        make = (lambda n: nn.Conv2d(1, n, 3, padding=1)) if images else (lambda n: nn.Linear(8, n))
        self.a, self.b = make(8), make(8)
        if head:
            self.c = nn.Conv2d(8, 3, 3) if images else nn.Linear(8, 3)
        self.register_buffer("offsets", OFFSETS)
        self.powers = nn.Parameter(POWERS)
        self.function, self.head = function, head

    def forward(self, x):
        y = self.function(self, self.a(x), self.b(x))
        return self.c(y) if self.head else y


EXACT = {
    "a - b": lambda net, a, b: a - b,
    "-a": lambda net, a, b: -a,
    "2 a": lambda net, a, b: 2 * a,
    "a / 256": lambda net, a, b: a / 256,
    "a 0.5": lambda net, a, b: a * 0.5,
    "a -3": lambda net, a, b: a * -3,
    "a 0": lambda net, a, b: a * 0.0 + b,
    "a / 3": lambda net, a, b: a / 3,
    "a / -0.75": lambda net, a, b: torch.div(a, -0.75),
    "sum": lambda net, a, b: sum([a, b]),
    "alpha": lambda net, a, b: torch.add(a, b, alpha=2),
    "alpha of a difference": lambda net, a, b: torch.sub(a, b, alpha=0.5),
    "average of two": lambda net, a, b: (a + b) / 2,
    "a + 1.5": lambda net, a, b: a + 1.5,
    "1 - a": lambda net, a, b: 1 - a,
    "rsub": lambda net, a, b: torch.rsub(a, b),
    "in place": lambda net, a, b: a.mul_(2).sub_(b).add_(0.25),
    "relu of a difference": lambda net, a, b: (0.25 - a).relu() - torch.relu(-b).clamp(max=0.5),
    "hard sigmoid by hand": lambda net, a, b: ((a + 3).clamp(0, 6) / 6) - 0.5,
    "buffer": lambda net, a, b: a + net.offsets,
    "parameter": lambda net, a, b: a * net.powers - net.powers,
    "constant of the forward": lambda net, a, b: torch.tensor(OFFSETS.tolist()) - b,
    "computed constant": lambda net, a, b: a + (net.offsets[None] * 2).abs(),
    "sum over an axis": lambda net, a, b: a - b.sum(1, keepdim=True),
    "sum of a stack": lambda net, a, b: torch.stack([a, b, -a], 1).sum(1),
    "mean of a stack": lambda net, a, b: torch.stack((a.relu(), b, a), -1).mean(-1),
    "repeated": lambda net, a, b: a[:, :1] + net.offsets,
    "another axis": lambda net, a, b: (a[:, :4, None] * net.powers[:2] - net.offsets[:2]).flatten(1),
    "twice": lambda net, a, b: a / 4 + a * 2 - (a - b),
}


@pytest.mark.parametrize(("head", "profile"), [(True, "shift"), (False, "dyadic")], ids=["hidden", "output"])
@pytest.mark.parametrize("function", EXACT.values(), ids=EXACT)
def test_integers_are_what_the_forward_computes(function, head, profile, tmp_path):
    q = probq.quantize(Net(function, head).eval(), VECTORS, plan=probq.Plan(profile=profile))
    model = probq.lower(q)
    expected = q(VECTORS.double()).detach().numpy()
    if math.frexp(model.output_scale)[0] == 0.5:
        assert np.array_equal(model(VECTORS) * model.output_scale, expected)
    else:  # float64 has no thirds
        units = expected / model.output_scale
        assert np.array_equal(model(VECTORS), np.rint(units))
        assert np.abs(model(VECTORS) - units).max() < 1e-9
    model.save(tmp_path / "m.safetensors")
    assert np.array_equal(probq.IntegerModel.load(tmp_path / "m.safetensors")(VECTORS), model(VECTORS))


@pytest.mark.parametrize("function", EXACT.values(), ids=EXACT)
def test_with_wide_codebooks_they_are_nearly_those_of_the_network(function):
    net = Net(function).eval()
    wide = probq.Plan(weight=ladder(10), input=ladder(10), network_input=ladder(10))
    model = probq.lower(probq.quantize(net, VECTORS, plan=wide))
    exact = net(VECTORS).detach().numpy()
    assert np.abs(model(VECTORS) * model.output_scale - exact).max() < 0.02 * np.abs(exact).max()


IN_IMAGES = {
    "a - b": lambda net, a, b: a.relu() - b.relu(),
    "channels": lambda net, a, b: a + net.offsets.reshape(1, 8, 1, 1),
    "negative channels": lambda net, a, b: -(a * net.powers.reshape(8, 1, 1)),
    "a place": lambda net, a, b: torch.arange(8.0) - a / 2,
    "pooled": lambda net, a, b: nn.functional.max_pool2d(0.5 - a, 3, 1) / 3,
}


@pytest.mark.parametrize("function", IN_IMAGES.values(), ids=IN_IMAGES)
def test_images_in_every_target(function, tmp_path):
    q = probq.quantize(Net(function, images=True).eval(), IMAGES)
    model = probq.lower(q)
    assert np.array_equal(model(IMAGES) * model.output_scale, q(IMAGES.double()).detach().numpy())
    _exported(model, IMAGES, tmp_path)


@pytest.mark.parametrize(
    "name", ["a - b", "-a", "a -3", "a / 3", "1 - a", "parameter", "twice", "hard sigmoid by hand"]
)
def test_vectors_in_every_target(name, tmp_path):
    model = probq.lower(probq.quantize(Net(EXACT[name]).eval(), VECTORS))
    _exported(model, VECTORS, tmp_path)


def _exported(model, x, path):
    """Each target computes the model's integers, or says that it cannot."""
    verified = 0
    for target, name in ((probq.export.c, "m.h"), (probq.export.onnx, "m.onnx"), (probq.export.qonnx, "q.onnx")):
        try:
            target.write(model, path / name)
        except probq.ProbqError:
            assert target is probq.export.qonnx
            continue
        verified += probq.export.verify(model, path / name, x).differing == 0
    assert verified >= 2


def test_powers_of_two_of_the_network_s_own_input_change_its_scale():
    net = nn.Linear(8, 4)

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = net

        def forward(self, x):
            return self.a(x / 256)

    x = torch.rand(64, 8) * 255
    model = probq.lower(probq.quantize(Scaled(), x))
    plain = probq.lower(probq.quantize(nn.Sequential(net), x / 256))
    assert model.input.attributes["scale"] == 256 * plain.input.attributes["scale"]
    assert np.array_equal(model(x), plain(x / 256))


REFUSED = {
    "inverse": (lambda net, a, b: 2 / a, "reciprocal"),
    "alpha of a tenth": (
        lambda net, a, b: torch.add(a, b, alpha=0.1),
        "add in the network .*0.1 has too many binary digits",
    ),
    "division by 0": (lambda net, a, b: a / 0, "empty or not finite"),
    "infinity": (lambda net, a, b: a + float("inf"), "not finite"),
    "rounded quotient": (
        lambda net, a, b: torch.div(a, 2, rounding_mode="floor"),
        "div in the network .*it rounds by itself",
    ),
    "a quantized bias": (lambda net, a, b: a + net.b.bias, "b.bias is quantized"),
}


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize(("function", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_exact_form_is_refused(function, message):
    finite = not message.startswith(("divides", "not finite", "empty or not"))
    with pytest.raises(probq.ProbqError, match=message):
        probq.lower(probq.quantize(Net(function, head=finite).eval(), VECTORS))
