"""What a decided network computes in float64 is what its integers are, also with wide biases and scales far apart."""

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import probq
from probq.codebooks import ladder
from probq.network.program.biases import accumulator_step, rounded_bias
from probq.network.program.decided_codes import rung_onehots
from tests.networks import NETWORKS, PLANS, trained

FLOOR = {"shift": probq.Plan(weight=ladder(8), profile="shift"), "dyadic": probq.Plan(weight=ladder(8))}


def real(model, x):
    return model(x) * model.output_scale


@pytest.mark.parametrize("plan", FLOOR.values(), ids=FLOOR)
@pytest.mark.parametrize("normalised", [False, True], ids=["plain", "normalised"])
def test_biases_of_more_than_24_bits_are_rounded_as_fractions(plan, normalised):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 256), nn.BatchNorm1d(256)] if normalised else [nn.Linear(4, 256)]
    net, x = nn.Sequential(*layers).eval(), torch.randn(16, 4)
    (layers[-1]).bias.data = 2.0 ** torch.empty(256).uniform_(0, 9) * torch.randn(256).sign()
    q = probq.quantize(net, x, plan=plan).eval()
    q.weights["0.weight"].log2_scale.data -= 7
    a = q.mode()
    fixed, model = q.at(a), probq.lower(q, a)
    chosen = rung_onehots(fixed, a.widths)
    rungs = (fixed.rung("0.weight", chosen["0.weight"]), fixed.quantizer("0.input").rung(chosen["0.input"].argmax(-1)))
    step = accumulator_step(fixed.net, q.layers[0], *rungs)
    bias = rounded_bias(fixed.net, q.layers[0], fixed.folded).detach()
    integers = next(node for node in model.nodes if node.op == "linear").tensors["bias"]
    assert np.abs(integers).max() > 2**24
    for number, unit, integer in zip(bias, step, integers, strict=True):
        exact = Fraction(float(number)) / Fraction(float(unit))
        assert int(integer) == (2 * exact + 1).__floor__() // 2
    assert np.array_equal(real(model, x), fixed(x.double()).detach().numpy())


@pytest.mark.parametrize("network", ["volume", "branches", "signed mlp", "text"])
@pytest.mark.parametrize("plan", ["tensor", "tensor, shift", "narrow"])
def test_scales_and_biases_far_apart(network, plan):
    make, data = NETWORKS[network]
    compared, x = 0, data(16)
    quantized = probq.quantize(trained(make), x, plan=PLANS[plan])
    for seed in range(3):
        torch.manual_seed(seed)
        q = copy.deepcopy(quantized)
        for _, quantizer in q.named_quantizers():
            quantizer.log2_scale.data += 3 * torch.randn(quantizer.log2_scale.shape)
        for name, parameter in q.net.named_parameters():
            parameter.data *= 10.0 ** (seed * name.endswith("bias"))
        try:
            model = probq.lower(q)
        except probq.ProbqError:  # too far apart for 31 bits, or an input of two scales
            continue
        expected = q(x.double() if x.is_floating_point() else x).double().detach().numpy()
        found = real(model, x).astype(np.float32) if not x.is_floating_point() else real(model, x)
        np.testing.assert_array_equal(found, expected)
        compared += found.size
    assert compared or network == "branches"


@pytest.mark.parametrize("bits", [1, 2])
def test_signed_inputs_whose_scale_is_far_above_all_values(bits):
    """One signed bit has its tie at 0, beside which accumulators may be as small as they like."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 32, bias=False), nn.Linear(32, 8)), torch.randn(64, 8)
    plan = probq.Plan(weight=ladder(8), input=ladder(bits, signed=True), network_input=ladder(8, signed=True))
    q = probq.quantize(net, x, plan=plan).eval()
    for power in (0, 20, 40):
        q.inputs["1.input"].log2_scale.data.fill_(power)
        assert np.array_equal(real(probq.lower(q), x), q(x.double()).detach().numpy())


@pytest.mark.parametrize("kernel", [2, 3, 5, 6, 7])
@pytest.mark.parametrize("signed", [1, 2, 8, 15])
def test_averages_on_ties_go_up(kernel, signed):
    """Sums of small integers over the numbers they are of, times a half, lie on ties more often than not."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(1, 4, 1), nn.AvgPool1d(kernel), nn.Conv1d(4, 3, 1), nn.AdaptiveAvgPool1d(1))
    x = torch.randint(-40, 40, (128, 1, kernel * kernel)).float() / 4
    plan = probq.Plan(weight=ladder(8), input=ladder(signed, signed=True), network_input=ladder(8, signed=True))
    q = probq.quantize(net, x, plan=plan).eval()
    q.inputs["0.input"].log2_scale.data.fill_(-2)
    with torch.no_grad():
        net_weight = q.net.get_submodule("0").weight
        net_weight.copy_(torch.tensor([1.0, -1.0, 3.0, kernel]).reshape(4, 1, 1))
        q.net.get_submodule("0").bias.zero_()
        q.weights["0.weight"].log2_scale.data.zero_()
    for power in (-1, 0, 1, 2):
        q.inputs["2.input"].log2_scale.data.fill_(power)
        model = probq.lower(q)
        found, expected = model(x), q(x.double()).detach().numpy()
        assert np.array_equal(found, np.rint(expected / model.output_scale))
        np.testing.assert_allclose(found * model.output_scale, expected, rtol=2.0**-50, atol=0)


class Cancelling(nn.Module):
    """A mean of nine, and minus the means of its thirds, but for a constant factor."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(1, 8, 1, bias=False), nn.Conv1d(1, 8, 1, bias=False), nn.Linear(8, 3)
        self.a.weight.data.fill_(1.0)
        self.b.weight.data.fill_(-1.0)

    def forward(self, x):
        b = self.b(x)
        return self.c(self.a(x).mean(2) + b[:, :, :3].mean(2) + b[:, :, 3:6].mean(2) + b[:, :, 6:].mean(2))


def test_averages_whose_sum_is_zero_lie_on_a_tie_at_zero():
    """In float64 three thirds that cancel leave 1e-17 of either sign, which one signed bit would show."""
    torch.manual_seed(0)
    net, x = Cancelling(), torch.randint(-9, 9, (512, 1, 9)).float() / 4
    plan = probq.Plan(weight=ladder(2), input=ladder(1, signed=True), network_input=ladder(8, signed=True))
    q = probq.quantize(net, x, plan=plan).eval()
    for power in (-24, 0, 10):
        q.inputs["c.input"].log2_scale.data.fill_(power)
        assert np.array_equal(real(probq.lower(q), x), q(x.double()).detach().numpy())


def test_outputs_of_more_than_24_bits_that_indices_give_in_float32():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 64)).eval(), torch.randint(0, 9, (32, 3))
    net[2].bias.data = torch.empty(64).uniform_(-3000, 3000)
    q = probq.quantize(net, x, plan=FLOOR["dyadic"])
    model = probq.lower(q)
    assert np.abs(model(x)).max() > 2**24
    assert np.array_equal(real(model, x).astype(np.float32), q(x).detach().numpy())
