"""Functions that are called with parameters of any module are layers like those of modules."""

import pytest
import torch
import torch.nn.functional as F
from exact_integers import assert_exact
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import probq
from probq.network.tracing.trace import layers
from probq.testing import decided_copy


class Called(nn.Module):
    """Every product is a function's: weights of its own, of a module that is never called, and one for two calls."""

    def __init__(self):
        super().__init__()
        self.wide, self.up = (nn.Parameter(torch.randn(shape) / 3) for shape in ((6, 3, 3, 3), (6, 2, 2, 2)))
        self.bias, self.norm, self.second = nn.Parameter(torch.randn(6)), nn.BatchNorm2d(6), nn.Linear(128, 5)
        self.last = nn.ParameterDict({"w": nn.Parameter(torch.randn(2, 5))})

    def forward(self, x):
        x = F.relu(self.norm(F.conv2d(x, self.wide, self.bias, stride=(2, 2), padding=1)))
        x = F.conv_transpose2d(x, self.up, None, 2)
        y = torch.sigmoid(F.linear(x.flatten(1), self.second.weight, bias=self.second.bias))
        return F.linear(y, self.last["w"]) + F.linear(y.tanh(), weight=self.last["w"])


def called():
    torch.manual_seed(0)
    net = Called().eval()
    net.norm.running_mean.normal_()
    return net, torch.randn(16, 3, 8, 8)


def test_they_have_the_names_of_their_parameters_and_the_macs_of_torch():
    net, x = called()
    found = layers(net, x)
    assert [(layer.name, layer.weight, layer.norm) for layer in found] == [
        ("conv2d().layer", "wide", "norm"),
        ("conv_transpose2d().layer", "up", None),
        ("linear().layer", "second.weight", None),
        ("linear()2.layer", "last.w", None),
        ("linear()3.layer", "last.w", None),
    ]
    assert [layer.weights for layer in found] == [162, 48, 640, 10, 0]
    with FlopCounterMode(display=False) as counter:
        net(x)
    assert sum(layer.macs for layer in found) == counter.get_total_flops() // 2 // len(x)


@pytest.mark.parametrize("profile", ["dyadic", "shift"])
def test_they_train_are_saved_and_become_integers(profile, tmp_path):
    net, x = called()
    q = probq.quantize(net, x, probq.Plan(profile=profile))
    assert q.notes == ()
    probq.fit(q, [(x, torch.arange(16) % 2)] * 2, probq.Budget(percent=3), epochs=1, progress=False, seed=0)
    assert_exact(q.eval(), 3 * x, tmp_path)
    plain = decided_copy(q, q.mode())(x.double())
    torch.testing.assert_close(q.at(q.mode()).eval()(x.double()), plain, rtol=1e-9, atol=1e-9)
    q.save(tmp_path / "q.safetensors")
    assert torch.equal(probq.load(tmp_path / "q.safetensors", net).eval()(x), q(x))
    assert set(net.state_dict()) == {*dict(Called().state_dict())}
