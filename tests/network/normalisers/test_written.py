"""Normalisations that a forward spells out are those of torch, in float and in integers, and others are refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exact_integers import assert_exact
from torch import nn

import probq
from probq.network.normalisers.written import is_written
from probq.network.tracing.routing import routed

EPS = 1e-3
X = torch.randn(16, 5, 6, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    """A layer, what a function makes of its output with a gain, and another layer."""

    def __init__(self, function, channels=8):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.out, self.function = nn.Linear(6, 8), nn.Linear(8, 3), function
        self.gain = nn.Parameter(1 + torch.randn(channels) / 8)

    def forward(self, x):
        return self.out(self.function(self.a(x), self.gain))


def _llama(x, gain):
    dtype = x.dtype
    x = x.to(torch.float32) if dtype != torch.float64 else x
    variance = x.pow(2).mean(-1, keepdim=True)
    return gain * (x * torch.rsqrt(variance + EPS)).to(dtype)


def _means(x, gain):
    mean = x.mean(-1, True)
    away = x - mean
    return away * ((away * away).mean(dim=[-1], keepdim=True) + EPS) ** -0.5 * gain


def _both_moments(x, gain):
    variance, mean = torch.var_mean(x, -1, keepdim=True, correction=0)
    return (x - mean) * (1 / torch.sqrt(EPS + variance)) * gain


def _channels(x, gain):
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    return gain[:, None] * ((x - mean) / torch.sqrt(variance + EPS))


def _layer_norm(x, gain):
    return F.layer_norm(x, [8], eps=EPS) * gain


def _rms_norm(x, gain):
    return F.rms_norm(x, [8], eps=EPS) * gain


def _both_axes(x, gain):
    return torch.square(x).mean((1, 2), keepdim=True).add(EPS).sqrt().reciprocal().mul(x) * gain


WRITTEN = {
    "LLaMA": (_llama, _rms_norm),
    "both axes": (_both_axes, lambda x, gain: F.rms_norm(x, [5, 8], eps=EPS) * gain),
    "means": (_means, _layer_norm),
    "variance": (
        lambda x, gain: (x - x.mean(-1, keepdim=True)) / (x.var(-1, False, True) + EPS).sqrt() * gain,
        _layer_norm,
    ),
    "gain first": (
        lambda x, g: g * (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + EPS),
        _layer_norm,
    ),
    "both moments": (_both_moments, _layer_norm),
    "channels": (_channels, lambda x, g: F.layer_norm(x.mT, [5], eps=EPS).mT * g[:, None]),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_a_normalisation_that_is_written_is_the_one_that_is_called(case):
    """In float to rounding errors, and the same integers to the last bit."""
    channels = 5 if case == "channels" else 8
    written, called = (
        probq.quantize(Net(function, channels).eval(), X, plan=probq.uniform(6, 6)) for function in WRITTEN[case]
    )
    assert not written.notes
    net = Net(WRITTEN[case][0], channels)
    with routed(written.net):
        outputs = written.net(X), net(X)
    assert torch.allclose(*outputs, atol=2e-3)  # gains have 12 binary digits
    gradients = [torch.autograd.grad(y.sum(), m.gain)[0] for y, m in zip(outputs, (written.net, net), strict=True)]
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-3)
    first, second = probq.lower(written), probq.lower(called)
    assert np.array_equal(first(X), second(X))
    assert [node.op for node in first.nodes].count("normalise") == 1


@pytest.mark.parametrize("case", ["LLaMA", "gain first"])
def test_it_is_exact_in_every_target_and_in_its_file(case, tmp_path):
    q = probq.quantize(Net(WRITTEN[case][0]).eval(), X, plan=probq.uniform(4, 4))
    assert_exact(q, 3 * X, tmp_path)
    q.save(tmp_path / "q.safetensors")
    loaded = probq.load(tmp_path / "q.safetensors", Net(WRITTEN[case][0]))
    assert torch.equal(loaded(X), q(X))


def test_one_module_may_normalise_twice():
    norm = Net(lambda x, gain: _means(_means(x, gain).relu(), gain))
    names = [name for name, _ in probq.quantize(norm.eval(), X).net.named_modules() if name.endswith("layer_norm()")]
    assert len(names) == 2


def _kept(x, gain):
    away = x - x.mean(-1, keepdim=True)
    return away / (away.pow(2).mean(-1, keepdim=True) + EPS).sqrt() + away


def _changed(x, gain):
    power = x.pow(2).mean(-1, keepdim=True)
    x = x * gain
    return x * torch.rsqrt(power + EPS)


def _in_place(x, gain):
    power = x.pow(2).mean(-1, keepdim=True)
    x += 1
    return x * torch.rsqrt(power + EPS)


OTHERS = {
    "kept": _kept,
    "changed": _changed,
    "in place": _in_place,
    "unbiased": lambda x, gain: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + EPS).sqrt(),
    "eps outside": lambda x, gain: gain * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + EPS),
    "no eps": lambda x, gain: x / x.pow(2).mean(-1, keepdim=True).sqrt(),
    "a sum": lambda x, gain: x / (x.pow(2).sum(-1, keepdim=True) + EPS).sqrt(),
    "a clamp": lambda x, gain: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True).clamp(min=EPS)),
    "not centred": lambda x, gain: x / (x.var(-1, unbiased=False, keepdim=True) + EPS).sqrt(),
    "other axes": lambda x, gain: (x - x.mean(1, keepdim=True)) / (x.var(-1, False, True) + EPS).sqrt(),
    "the batch": lambda x, gain: x * torch.rsqrt(x.pow(2).mean(0, keepdim=True) + EPS),
}


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize("case", OTHERS)
def test_what_is_similar_and_another_is_refused(case):
    q = probq.quantize(Net(OTHERS[case]).eval(), X)
    assert not [name for name, _ in q.net.named_modules() if name.endswith("norm()")]
    (note,) = q.notes
    assert "the batch axis" in note or "in a normalisation alone: call F.layer_norm or F.rms_norm, or write" in note


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_a_part_that_is_returned_keeps_its_value():
    class Returned(Net):
        def forward(self, x):
            away = self.a(x) - self.a(x).mean(-1, keepdim=True)
            same = away - away.mean(-1, keepdim=True)
            return self.out(same / (same.pow(2).mean(-1, keepdim=True) + EPS).sqrt()), same

    net = Returned(None).eval()
    q = probq.quantize(net, X, plan=probq.uniform(8, 8))
    with routed(q.net), torch.no_grad():
        assert torch.allclose(q.net(X)[1], net(X)[1], atol=1e-2)


@pytest.mark.parametrize(
    ("entry", "valid"),
    [
        (["written", "rms_norm", 0, [-1], 1e-6], True),
        (["written", "done", 1, [], 0.0], True),
        (["written", "rms_norm", 0, [0], 1e-6], False),
        (["written", "rms_norm", 2, [-1], 1e-6], False),
        (["written", "layer_norm", 0, [-1], 0.0], False),
        (["written", "layer_norm", 0, [-1], float("nan")], False),
        (["written", "layer_norm", 0, [-1, -1], 1e-6], False),
        (["written", "batch_norm", 0, [-1], 1e-6], False),
        (["written", "done"], False),
    ],
)
def test_files_give_them_as_they_are(entry, valid):
    assert is_written(entry) is valid
