"""Channels of zeros and of tiny weights: what q(x) computes has integers, and still is what the network computes."""

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import probq
from probq.codebooks import ladder, levels
from probq.network.program.biases import accumulator_step

torch.manual_seed(0)
VECTORS, IMAGES, TEXT = torch.randn(32, 4), torch.randn(8, 3, 8, 8), torch.randint(0, 9, (32, 3))
PLANS = {
    "shift": probq.Plan(profile="shift"),
    "dyadic": probq.Plan(),
    "channels": probq.Plan(gates="channel"),
    "weights": probq.Plan(weight=ladder(1, 2, 4), gates="weight"),
    "given levels": probq.Plan(weight=ladder(levels([-1.5, -0.25, 0.25, 1.5]))),
}


class Residual(nn.Module):
    """A block whose last normalisation starts as the user says, as it often does with gains of 0."""

    def __init__(self, *gains):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv, self.norm2, self.out = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 3)
        with torch.no_grad():
            self.norm2.weight.copy_(torch.tensor(gains))
            self.norm2.bias.uniform_(-1, 1)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        return self.out(F.relu(x + self.norm2(self.conv(x))).mean((2, 3)))


def scaled(net, **factors):
    """A network with some rows of its weights, `_LAYER_ROW=FACTOR`, or whole weights, `_LAYER=FACTOR`, multiplied."""
    net = copy.deepcopy(net)
    for place, factor in factors.items():
        layer, *row = map(int, place.strip("_").split("_"))
        part = net[layer].weight.data
        part.transpose(0, int(isinstance(net[layer], nn.ConvTranspose2d)))[tuple(row)] *= factor
    return net


PERCEPTRON = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
CONVOLUTIONS = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6)
)
NETWORKS = {
    "row of zeros": (scaled(PERCEPTRON, _0_1=0), VECTORS),
    "tiny row": (scaled(PERCEPTRON, _0_1=1e-6), VECTORS),
    "tiny layer": (scaled(PERCEPTRON, _0=1e-6), VECTORS),
    "vanishing": (scaled(PERCEPTRON, _0_1=1e-20, _2=1e-20), VECTORS),
    "head of zeros": (scaled(PERCEPTRON, _2=0), VECTORS),
    "tiny row of the head": (scaled(PERCEPTRON, _2_1=1e-6), VECTORS),
    "head without bias": (nn.Sequential(scaled(PERCEPTRON, _0_1=1e-6)[0], nn.Linear(8, 3, bias=False)), VECTORS),
    "everything 0": (scaled(PERCEPTRON, _0=0, _2=0), VECTORS),
    "inputs of zeros": (PERCEPTRON, torch.zeros(32, 4)),
    "tiny inputs": (PERCEPTRON, VECTORS * 1e-6),
    "convolutions": (scaled(CONVOLUTIONS, _0_2=0, _2_1=1e-7, _4_1=1e-6, _4_2=0), IMAGES),
    "embedding": (scaled(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4)), _0_3=1e-9, _1_0=0), TEXT),
    "gains of 0": (Residual(0.0, 0.0, 0.0, 0.0), IMAGES),
    "a gain of 0": (Residual(0.0, 1.0, -1.0, 1e-5), IMAGES),
    "gains of nearly 0": (Residual(1e-8, 1e-9, 0.0, -1e-8), IMAGES),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize(("net", "x"), NETWORKS.values(), ids=NETWORKS)
def test_integers_are_what_the_network_computes(net, x, plan):
    q = probq.quantize(net.eval(), x, plan=plan)
    model = probq.lower(q)
    assert np.array_equal((model(x) * model.output_scale).astype(np.float32), q(x).numpy())


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize(("net", "x"), NETWORKS.values(), ids=NETWORKS)
def test_wide_codebooks_lose_nothing(net, x):
    """What is tiny beside a bias or another channel may go; the output must not move by more than 10 bits round it."""
    wide = probq.Plan(weight=ladder(10), input=ladder(10), network_input=ladder(10))
    with torch.no_grad():
        expected = net.eval()(x)
    error = (probq.quantize(net, x, plan=wide)(x) - expected).abs().max()
    assert error <= 0.02 * max(float(expected.abs().max()), 1e-3)


@pytest.mark.parametrize("plan", [PLANS["shift"], PLANS["dyadic"]], ids=["shift", "dyadic"])
@pytest.mark.parametrize("name", ["row of zeros", "head of zeros"])
def test_zeros_learn_and_are_lowered_behind_a_fit(name, plan):
    net, x = copy.deepcopy(NETWORKS[name])
    y = x[:, :3].argmax(1)
    q = probq.quantize(net, x, plan=plan)
    rates = probq.Rates(weights=0.03)
    probq.fit(q, [(x, y)] * 20, probq.Budget(percent=6.0), epochs=4, progress=False, seed=0, rates=rates)
    model = probq.lower(q)
    assert np.array_equal((model(x) * model.output_scale).astype(np.float32), q(x).numpy())
    assert float((q(x).argmax(1) == y).double().mean()) > 0.7


def test_a_row_of_zeros_has_the_scale_of_the_largest_number():
    net = scaled(PERCEPTRON, _0_1=0)
    quantizer = probq.quantize(net, VECTORS).weights["0.weight"].requires_grad_(False)
    largest = float(net[0].weight.detach().abs().max())
    for bits, scale in zip(quantizer.ladder.bits, quantizer.scales().detach(), strict=True):
        if bits > 1:  # one bit is -1 or 1, nearest to zeros in a small scale
            assert float(scale[1]) == 2.0 ** math.ceil(math.log2(largest / (2 ** (bits - 1) - 1)))


def test_ordinary_scales_stay():
    """Networks that leave room are not touched: a scale is what training left, times the gain folded in."""
    for net, x in [(PERCEPTRON, VECTORS), (CONVOLUTIONS, IMAGES)]:
        q = probq.quantize(net, x, plan=probq.Plan(profile="dyadic"))
        with q.evaluating():
            for name, quantizer in q.weights.items():
                for k, scale in enumerate(quantizer.scales()):
                    onehot = torch.eye(len(quantizer.ladder))[k]
                    assert torch.equal(q.rung(name, onehot).scale, scale)


@pytest.mark.parametrize("plan", [PLANS["shift"], PLANS["dyadic"]], ids=["shift", "dyadic"])
def test_biases_fit_30_bits_in_the_common_step_of_all_channels(plan):
    """The promise of the least scale, from the numbers that ship, in exact fractions."""
    net = scaled(PERCEPTRON, _0=1e-6, _0_2=1e-9, _2_0=1e-7)
    net[2].bias.data[1] = 3e5
    q = probq.quantize(net, VECTORS, plan=plan)
    fixed = q.at(q.mode())
    onehots = {name: quantizer.probs() for name, quantizer in fixed.named_quantizers()}
    for layer in q.layers:
        weight = fixed.rung(layer.weight, onehots[layer.weight])
        x = fixed.quantizer(layer.input).rung(onehots[layer.input].argmax(-1))
        step = accumulator_step(fixed.net, layer, weight, x)
        steps = [Fraction(float(s)) for s in step]
        unit = Fraction(1, max(s.denominator for s in steps))  # the greatest that all are multiples of, below 1
        largest = max(abs(Fraction(float(b))) for b in net.get_submodule(layer.name).bias.detach())
        assert unit < 1
        assert largest / unit <= 2**30
