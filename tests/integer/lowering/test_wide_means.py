"""Means of many numbers of 31 bits: their sums take up to 40 bits, and the rounding behind them is still exact."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import probq
from probq.codebooks import ladder

SIZE = 14  # 196 positions: 31 bits of each are 39 of their sum
pytestmark = pytest.mark.filterwarnings("ignore:probq.lower will refuse")


class Averaged(nn.Module):
    """A convolution that nearly fills 31 bits, a mean over its positions, and a layer that reads it."""

    def __init__(self, mean, head=True):
        super().__init__()
        self.conv, self.mean = nn.Conv2d(4, 6, 3, padding=1), mean
        self.linear = nn.Linear(6, 3) if head else nn.Identity()

    def forward(self, x):
        return self.linear(self.mean(self.conv(x).relu()).flatten(1))


def decided(mean, bits=12, head=True, profile="shift", size=SIZE):
    torch.manual_seed(0)
    wide = {"input": ladder(8, signed=False), "network_input": ladder(bits, signed=False)}
    plan = probq.Plan(weight=ladder(bits), profile=profile, **wide)
    q = probq.quantize(Averaged(mean, head).eval(), torch.rand(8, 4, size, size), plan)
    return q.at(q.mode())


MEANS = {
    "over two axes": lambda y: y.mean((2, 3)),
    "one axis after the other": lambda y: y.mean(3).mean(2),
    "pooled first": lambda y: F.avg_pool2d(y, 2).mean((2, 3)),
    "pooled to one": lambda y: F.adaptive_avg_pool2d(y, 1),
    "a sum and a quotient": lambda y: y.sum((2, 3)) / SIZE**2,
    "in overlapping windows, then rectified": lambda y: F.avg_pool2d(y, SIZE - 1, SIZE).relu(),
}


@pytest.mark.parametrize("profile", ["shift", "dyadic"])
@pytest.mark.parametrize("mean", MEANS.values(), ids=MEANS)
def test_the_integers_are_what_the_network_computes(mean, profile):
    """`q` computes the same in float64; ties there are rounded up as in the integers."""
    bits = 12 if profile == "shift" else 11
    q, x = decided(mean, bits, profile=profile), torch.rand(64, 4, SIZE, SIZE)
    model = probq.lower(q)
    sums = [node for node in model.nodes if node.op in ("sum", "sum_pool")]
    assert max(node.bound for node in sums) > 2**32
    assert all(node.bound < 2**31 for node in model.nodes if node not in sums)
    assert np.array_equal(model(x) * model.output_scale, q(x.double()).detach().numpy())


def test_a_mean_by_hand():
    """Of 64 numbers that each take 31 bits, rounded to 8: `floor(mean / 2^24 + 1/2)`, ties among them."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(1, 1, bias=False))
    net[0].weight.data.fill_(2.0**14)
    net[3].weight.data.fill_(1.0)
    wide = {"weight": ladder(16), "input": ladder(8, signed=False), "network_input": ladder(16, signed=False)}
    q = probq.quantize(net, torch.rand(2, 1, 8, 8), probq.Plan(**wide))
    scales = {"0.weight": 0, "0.input": 0, "3.weight": 0, "3.input": 23}
    for name, quantizer in q.named_quantizers():
        quantizer.log2_scale.data.fill_(scales[name])
    model = probq.lower(q)
    assert next(node.bound for node in model.nodes if node.op == "sum_pool") == 64 * 2**14 * (2**16 - 1)
    x = np.full((4, 1, 8, 8), 2**16 - 1.0)
    x[1:, :, :, :4] = 1.0  # then 31 or 32 of 64 columns' numbers
    x[2], x[3] = 2**8, 2**8 - 1 / 64
    x[3, 0, 0, 0] -= 1
    levels = [int(np.floor(np.floor(each + 0.5).sum() * 2**14 / 64 / 2**23 + 0.5)) for each in x[:, 0]]
    assert (model(x)[:, 0] * model.output_scale).tolist() == [min(level, 255) * 2.0**23 for level in levels]
    assert levels[2:] == [1, 0]  # a tie, and what is just below it


@pytest.mark.parametrize(
    ("mean", "head", "size", "bits", "message"),
    [
        (lambda y: y.mean((2, 3)), False, SIZE, 12, "mean .* beyond 31 bits"),
        (lambda y: F.hardtanh(y.mean((2, 3)), 0, 2), False, SIZE, 12, "mean .* beyond 31 bits"),
        (lambda y: y.mean((2, 3)) + y.mean((2, 3)), True, SIZE, 12, "add .* beyond 31 bits"),
        (lambda y: y.mean((2, 3)), True, 64, 14, "mean .* beyond 40 bits"),
    ],
    ids=["that is the output", "clipped", "added", "of too many"],
)
def test_a_wide_mean_that_is_not_rounded_next_is_refused(mean, head, size, bits, message):
    with pytest.raises(probq.ProbqError, match=message):
        probq.lower(decided(mean, bits, head, size=size))
