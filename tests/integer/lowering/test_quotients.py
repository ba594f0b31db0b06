"""Quotients of computed tensors: means over masks, linear attention, local responses; the same integers everywhere."""

import numpy as np
import pytest
import torch
from exact_integers import assert_exact
from torch import nn
from torch.nn import functional as F

import probq
from probq.codebooks import ladder

LENGTHS = torch.tensor([6, 1, 3, 2, 4, 5, 6, 2])
X = torch.randn(8, 6, 4, generator=torch.Generator().manual_seed(1))
MASK = torch.arange(6) < LENGTHS[:, None]
FINE = probq.Plan(weight=ladder(8), input=ladder(8))


class Own(nn.Module):
    """Linear layers a and o, and a forward given as a function."""

    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.own, self.a, self.o = forward, nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, *others):
        return self.own(self, x, *others)


def mean_over(net, x, mask):
    mask = mask.unsqueeze(-1)
    return net.o((net.a(x) * mask).sum(1) / mask.sum(1))


def sentence(net, x, mask):
    wide = mask.unsqueeze(-1).expand(*x.shape[:2], 8).float()
    return net.o(torch.sum(net.a(x) * wide, 1) / torch.clamp(wide.sum(1), min=1e-9))


def shares(net, x, mask):
    mask = mask.unsqueeze(-1).long()
    return net.o((net.a(x) * (mask / mask.float().sum(1, keepdim=True))).sum(1))


def guarded(net, x, mask):
    mask = mask.unsqueeze(-1).float()
    return net.o((net.a(x) * mask).sum(1) / (mask.sum(1) + 1e-8))


MASKED = {
    "of bool": (mean_over, MASK),
    "of whole numbers": (mean_over, MASK.long()),
    "of real numbers": (mean_over, MASK.float()),
    "clamped": (sentence, MASK.long()),
    "guarded": (guarded, MASK),
    "as shares": (shares, MASK),
}


@pytest.mark.parametrize(("forward", "mask"), MASKED.values(), ids=MASKED)
def test_a_mean_over_a_mask_is_that_of_the_rows_that_it_keeps(forward, mask):
    net = Own(forward).eval()
    model = probq.lower(probq.quantize(net, (X, mask), FINE))
    found = torch.from_numpy(model((X, mask)) * model.output_scale)
    rows = torch.stack([net.o(net.a(x[:n]).mean(0)) for x, n in zip(X, LENGTHS, strict=True)])
    assert float((found - rows.detach()).abs().max() / rows.abs().max().detach()) < 0.04
    other = X.clone()
    other[~MASK] = 50.0  # which nothing sees
    assert np.array_equal(model((other, mask)), model((X, mask)))
    assert {node.op for node in model.nodes} >= {"quotient"}


def linear_attention(net, x):
    y = net.a(x)
    q, k = F.elu(y[..., :4]) + 1, F.elu(y[..., 4:]) + 1
    return net.o((q @ (k.transpose(1, 2) @ y)) / (q * k.sum(1, keepdim=True)).sum(-1, keepdim=True))


QUOTIENTS = {
    "linear attention": linear_attention,
    "lengths of 1": lambda net, x: net.o(net.a(x) / net.a(x).abs().sum(-1, keepdim=True).clamp(min=1e-12)),
    "of either sign": lambda net, x: net.o(net.a(x) / (net.a(x).roll(1, -1) + 0.25)),
    "in place": lambda net, x: net.o((2 * net.a(x)).div_(1 + net.a(x).abs())),
    "local responses": lambda net, x: F.local_response_norm(net.a(x).mT, 3, alpha=2.0, k=0.5).mT,
}


@pytest.mark.filterwarnings("ignore:.*stays float")
@pytest.mark.parametrize("forward", QUOTIENTS.values(), ids=QUOTIENTS)
def test_integers_are_what_the_network_computes(forward, tmp_path):
    net = Own(forward).eval()
    if forward is QUOTIENTS["local responses"]:
        del net.o
    q = probq.quantize(net, X, FINE)
    model = assert_exact(q, torch.cat([X, 3 * X, 0 * X[:2]]), tmp_path)
    if forward is not QUOTIENTS["of either sign"]:  # which has poles
        found, exact = torch.from_numpy(model(X) * model.output_scale), net(X).detach()
        assert float((found - exact).abs().max() / exact.abs().max()) < 0.06
    q.save(tmp_path / "q.safetensors")
    again = probq.lower(probq.load(tmp_path / "q.safetensors", net))
    assert np.array_equal(again(X), model(X))


def test_the_gradient_is_that_of_the_quotient_and_steps_are_set_by_data():
    net = Own(QUOTIENTS["lengths of 1"]).eval()
    q = probq.quantize(net, X, FINE)
    before = {name: float(step.log2_steps[0]) for name, step in q.steps.named().items()}
    q.likelihood = probq.likelihoods.Normal()
    list(probq.steps(q, [(4 * X, torch.zeros(8, 6, 3))] * 2, probq.Budget(percent=7), epochs=1))
    after = {name: float(step.log2_steps[0]) for name, step in q.steps.named().items()}
    assert after["div().dividend"] > before["div().dividend"]
    assert after["div().divisor"] > before["div().divisor"]
    assert float(q.net.a.weight.grad.abs().sum()) > 0


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_a_quotient_of_whole_numbers_is_refused_and_real_ones_are_advised():
    net = Own(lambda net, x, mask: net.o((net.a(x) * (mask / mask.sum(1, keepdim=True))[..., None]).sum(1)))
    with pytest.raises(probq.ProbqError, match=r"real numbers, as by mask.float\(\)"):
        probq.lower(probq.quantize(net, (X, MASK.long()), FINE))


def test_the_inverse_of_a_tensor_is_refused_and_the_power_that_is_advised_is_a_table():
    inverse = Own(lambda net, x: net.o(1 / (1 + net.a(x).abs())))
    with pytest.warns(UserWarning, match=r"torch.pow\(x, -1\)"):
        probq.quantize(inverse, X, FINE)
    advised = Own(lambda net, x: net.o(torch.pow(1 + net.a(x).abs(), -1)))
    assert probq.lower(probq.quantize(advised, X, FINE))(X).shape == (8, 6, 3)
