"""Softmax and normalisation: the same integers in every place, by hand, trained, and refused in a sentence."""

import numpy as np
import pytest
import torch
from exact_integers import assert_exact
from small_fits import trained_on_digits
from torch import nn
from torch.nn import functional as F

import probq
from probq.codebooks import ladder

X = torch.randn(24, 2, 4, 4, generator=torch.Generator().manual_seed(3))


class Own(nn.Module):
    """Convolutions a and h, a norm, gain and shift, and a forward given as a function."""

    def __init__(self, forward, norm=None):
        super().__init__()
        torch.manual_seed(0)
        self.own, self.norm = forward, norm
        self.a, self.h = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 3, 1)
        self.gain, self.shift = nn.Parameter(torch.randn(6) + 0.5), nn.Parameter(torch.randn(6))

    def forward(self, x):
        return self.own(self, x)


def behind(net, x):
    return net.h(F.relu(net.norm(net.a(x))))


PLACES = {
    "groups": Own(behind, nn.GroupNorm(3, 6)),
    "one group of wide eps": Own(behind, nn.GroupNorm(1, 6, eps=3.0)),
    "instances": Own(behind, nn.InstanceNorm2d(6, affine=True)),
    "instances alone": Own(behind, nn.InstanceNorm2d(6, eps=0.0)),
    "three axes": Own(behind, nn.LayerNorm((6, 4, 4), bias=False)),
    "over channels": Own(
        lambda net, x: net.h(F.layer_norm(net.a(x).movedim(1, -1), (6,), net.gain, net.shift).movedim(-1, 1))
    ),
    "root mean square": Own(lambda net, x: net.h(F.rms_norm(net.a(x).transpose(1, 3), [6], net.gain).transpose(1, 3))),
    "twice": Own(lambda net, x: net.h(net.norm(net.norm(net.a(x)) + net.a(x))), nn.GroupNorm(2, 6)),
    "the input": Own(lambda net, x: net.h(net.a(net.norm(x))), nn.GroupNorm(1, 2)),
    "softmax over channels": Own(lambda net, x: net.h(F.softmax(net.a(x), 1))),
    "softmax over rows": Own(lambda net, x: net.h(torch.softmax(0.3 * net.a(x), dim=2) + net.a(x).softmax(-1))),
    "softmax at the end": Own(lambda net, x: net.h(net.a(x)).flatten(2).mean(-1).softmax(1)),
    "log-softmax at the end": Own(lambda net, x: F.log_softmax(net.h(4 * net.a(x)), dim=1)),
    "log-softmax inside": Own(lambda net, x: net.h(torch.log_softmax(net.a(x).flatten(2), -1).reshape(-1, 6, 4, 4))),
}


@pytest.mark.parametrize("profile", ["shift", "dyadic"])
@pytest.mark.parametrize("net", PLACES.values(), ids=PLACES)
def test_integers_are_what_the_network_computes_in_every_place(net, profile, tmp_path):
    q = probq.quantize(net.eval(), X, probq.Plan(profile=profile))
    model = assert_exact(q, torch.cat([X, 3 * X, 0 * X[:2]]), tmp_path)
    wide = float((torch.from_numpy(model(X) * model.output_scale) - net(X)).detach().abs().max())
    assert wide < 0.03 * float(net(X).detach().abs().max()) + 0.02
    q.save(tmp_path / "q.safetensors")
    assert probq.lower(probq.load(tmp_path / "q.safetensors", net)).sha256() == model.sha256()


def test_a_normalisation_by_hand():
    """Integers 0 .. 7 are worth an eighth; their mean is 3.5 and their variance 5.25."""
    layer = nn.Linear(8, 8, bias=False)
    layer.weight.data = 127 * 2.0**-7 * torch.eye(8)
    net = nn.Sequential(layer, nn.LayerNorm(8, elementwise_affine=False, eps=0.0)).eval()
    x = torch.arange(8.0).reshape(1, 8) / 8
    plan = probq.Plan(weight=ladder(8), network_input=ladder(8, signed=True), profile="shift")
    model = probq.lower(probq.quantize(net, x, plan))
    assert model.output_scale == 2.0**-12
    assert np.array_equal(model(x)[0], np.floor(2**12 * (np.arange(8) - 3.5) / np.sqrt(5.25) + 0.5))


class Mixer(nn.Module):
    """Patches, a normalised residual layer, and a softmax at the end."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm, self.mix = nn.Conv2d(1, 8, 2, 2), nn.LayerNorm(8), nn.Linear(8, 8)
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, x):
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = y + F.relu(self.mix(self.norm(y)))
        return F.log_softmax(self.head(y.flatten(1)), -1)


@pytest.mark.parametrize("profile", ["shift", "dyadic"])
def test_gains_are_trained_to_their_integers(profile):
    torch.manual_seed(0)
    net = Mixer()
    x, y, batches = trained_on_digits(net, 0.02, 4)
    q = probq.quantize(net, x[:64], probq.Plan(profile=profile))
    before = q.net.get_parameter("norm.weight").detach().clone()
    probq.fit(q, batches, probq.Budget(percent=4), epochs=3, seed=0, progress=False)
    assert not torch.equal(q.net.get_parameter("norm.weight"), before)
    model = probq.lower(q)
    assert np.array_equal(model(x) * model.output_scale, q(x.double()).detach().numpy())
    assert (model(x[1280:]).argmax(1) == y[1280:].numpy()).mean() > 0.7


def test_gradients_are_those_of_the_float_functions_at_rounded_numbers():
    net = Own(behind, nn.GroupNorm(2, 6)).eval()
    q = probq.quantize(net, X)
    (step,) = q.steps.normalising().values()
    x = (torch.randn(3, 6, 4, 4) / 2**6).mul(2**9).round().div(2**9).requires_grad_()
    step.compute(x, q.net, exact=False).square().sum().backward()
    found = x.grad.clone()
    x.grad = None
    net.norm(x).square().sum().backward()
    torch.testing.assert_close(found, x.grad, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("end", [nn.Softmax(-1), nn.LogSoftmax(1)])
def test_a_plan_stops_in_front_of_a_last_softmax(end, tmp_path):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), end).eval()
    x = X.reshape(-1, 4)
    q = probq.quantize(net, x, probq.Plan(activation=None))
    assert q.notes == ()
    q.save(tmp_path / "q.safetensors")
    again = probq.load(tmp_path / "q.safetensors", net)
    model = probq.lower(again)
    assert model.metadata["ends_before"] == f"{'log_' * isinstance(end, nn.LogSoftmax)}softmax in 3"
    assert [node.op for node in model.nodes][-2:] == ["linear", "multiply"]
    logits = torch.from_numpy(model(x) * model.output_scale)
    torch.testing.assert_close(end(logits), again(x.double()))
    assert np.array_equal(model(x), probq.lower(probq.quantize(net[:3], x))(x))


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_a_softmax_left_in_float_is_refused_inside():
    net = nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 2)).eval()
    q = probq.quantize(net, X.reshape(-1, 4), lambda layer: probq.Plan(activation=None if layer.name == "0" else 8))
    with pytest.raises(probq.ProbqError, match=r"softmax in 1 .*stays float; give .* Plan\(activation=8\)"):
        probq.lower(q)


REFUSED = {
    "one number": (
        Own(behind, nn.GroupNorm(6, 6)),
        X[:, :, :1, :1],
        "group_norm in norm cannot be lowered to integers: it normalises each number by itself",
    ),
    "a long axis": (
        Own(lambda net, x: net.h(net.a(x)).flatten(1).softmax(1)),
        torch.zeros(2, 2, 160, 160),
        r"softmax in the network .*normalises 76,800 numbers together, .* 65,536; use a shorter axis",
    ),
    "the batch": (Own(lambda net, x: net.h(net.a(x).softmax(0))), X, "softmax in the network .*it is along the batch"),
    "a computed gain": (
        Own(lambda net, x: net.h(F.layer_norm(net.a(x), (4,), net.gain[:4].exp()))),
        X,
        "layer_norm in the network .*its gain and shift are computed",
    ),
    "statistics of their own": (
        Own(behind, nn.InstanceNorm2d(6, track_running_stats=True)),
        X,
        "instance_norm in norm .*track_running_stats=False",
    ),
}


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize(("net", "x", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_integers_is_refused_in_a_sentence(net, x, message):
    with pytest.raises(probq.ProbqError, match=message):
        probq.lower(probq.quantize(net.eval(), x))


def test_targets_that_cannot_divide_say_so(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)).eval()
    model = probq.lower(probq.quantize(net, X.reshape(-1, 4), probq.Plan(profile="shift")))
    with pytest.raises(probq.ProbqError, match="normalise has no memory form"):
        probq.export.memory.write(model, tmp_path / "m")
    pytest.importorskip("onnx")
    with pytest.raises(probq.ProbqError, match=r"QONNX has no normalise, only .*; export to ONNX or C"):
        probq.export.qonnx.write(model, tmp_path / "q.onnx")
    with pytest.raises(probq.ProbqError, match="normalise has no Verilog form"):
        probq.export.verilog.write(model, tmp_path / "v")
    with pytest.raises(probq.ProbqError, match="normalise"):
        probq.export.hls.write(model, tmp_path / "h")
