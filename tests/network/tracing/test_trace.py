"""Layers and their cost: MACs and BOPs of published networks, geometry by hand, and what tracing reports."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probq
from probq import ProbqError
from probq import cost as costs
from probq.network.tracing.layer import Layer
from probq.network.tracing.trace import layers
from probq.testing import lenet5, vgg7, zoo

LENET = {"0": 460_800, "3": 3_276_800, "7": 524_288, "9": 5_120}
VGG = [3_538_944, 150_994_944, 75_497_472, 150_994_944, 75_497_472, 150_994_944, 8_388_608, 10_240]

# (network, weight bits, input bits, bits of the network's own input) -> percent, copied from the design's benchmarks
PERCENT = {
    ("lenet5", 2, 2, 8): 0.5172,
    ("lenet5", 4, 4, 8): 1.7312,
    ("lenet5", 2, 32, 8): 5.7438,
    ("lenet5", 1, 32, 8): 2.8719,
    ("lenet5", 8, 8, 8): 6.2500,
    ("lenet5", 2, 2, 2): 0.3906,
    ("lenet5", 4, 4, 4): 1.5625,
    ("lenet5", 2, 32, 32): 6.25,
    ("lenet5", 1, 32, 32): 3.125,
    ("vgg7", 2, 2, 8): 0.3974,
    ("vgg7", 4, 4, 8): 1.5715,
    ("vgg7", 2, 32, 8): 6.2231,
    ("vgg7", 1, 32, 8): 3.1115,
    ("vgg7", 8, 8, 8): 6.2500,
}


@pytest.fixture(scope="module")
def traced() -> dict[str, tuple[Layer, ...]]:
    return {
        "lenet5": layers(lenet5(), torch.zeros(2, 1, 28, 28)),
        "vgg7": layers(vgg7(), torch.zeros(1, 3, 32, 32)),
    }


def test_macs_of_lenet5(traced: dict[str, tuple[Layer, ...]]) -> None:
    assert {layer.name: layer.macs for layer in traced["lenet5"]} == LENET
    assert sum(LENET.values()) == 4_267_008
    assert costs.full(traced["lenet5"]) == 4_369_416_192


def test_macs_of_vgg7(traced: dict[str, tuple[Layer, ...]]) -> None:
    assert [layer.macs for layer in traced["vgg7"]] == VGG
    assert sum(VGG) == 615_917_568


@pytest.mark.parametrize("case", PERCENT, ids=str)
def test_percentages_of_the_benchmarks(traced: dict[str, tuple[Layer, ...]], case: tuple[str, int, int, int]) -> None:
    name, weight, inputs, first = case
    widths: dict[str, int] = {}
    for layer in traced[name]:
        widths[layer.weight] = weight
        widths[str(layer.input)] = first if layer.first else inputs
    assert [layer.first for layer in traced[name]] == [True] + [False] * (len(traced[name]) - 1)
    percent = 100 * costs.total(traced[name], widths) / costs.full(traced[name])
    assert percent == pytest.approx(PERCENT[case], abs=5.01e-5)


class Block(nn.Module):
    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.short = nn.Conv2d(before, channels, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))) + self.short(x))


def test_macs_of_resnet18() -> None:
    body: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    before = 64
    for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        body += [Block(before, channels, stride), Block(channels, channels, 1)]
        before = channels
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))
    found = layers(net, torch.zeros(1, 3, 224, 224))
    assert len(found) == 21
    assert sum(layer.macs for layer in found) / 1e9 == pytest.approx(1.814, abs=5e-4)


def counted(module: nn.Module, shape: tuple[int, ...]) -> Layer:
    (layer,) = layers(nn.Sequential(module), torch.zeros(shape))
    return layer


# By hand: every output (every input, where transposed) meets a kernel's worth of channels.
GEOMETRY = {
    "linear on tokens": (nn.Linear(5, 7), (3, 4, 5), 4 * 7 * 5, (7, 5), 0),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), (2, 6, 5, 5), 6 * 3 * 3 * 9, (6, 1, 3, 3), 0),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (1, 4, 5, 5), 6 * 25 * 2 * 9, (6, 2, 3, 3), 0),
    "non-square": (nn.Conv2d(2, 3, (1, 4), (2, 1)), (1, 2, 5, 6), 3 * 3 * 3 * 2 * 4, (3, 2, 1, 4), 0),
    "dilated": (nn.Conv1d(2, 3, 3, dilation=2), (5, 2, 9), 3 * 5 * 2 * 3, (3, 2, 3), 0),
    "three axes": (nn.Conv3d(1, 2, 2), (1, 1, 3, 3, 3), 2 * 8 * 8, (2, 1, 2, 2, 2), 0),
    "transposed": (nn.ConvTranspose2d(2, 3, 3, 2), (1, 2, 4, 4), 2 * 16 * 3 * 9, (2, 3, 3, 3), 1),
    "transposed groups": (nn.ConvTranspose1d(4, 6, 2, 2, groups=2), (1, 4, 5), 4 * 5 * 3 * 2, (4, 3, 2), 1),
}


@pytest.mark.parametrize(("module", "shape", "macs", "weight", "axis"), GEOMETRY.values(), ids=GEOMETRY)
def test_geometry_by_hand(
    module: nn.Module, shape: tuple[int, ...], macs: int, weight: tuple[int, ...], axis: int
) -> None:
    layer = counted(module, shape)
    assert (layer.macs, layer.shape, layer.channel_axis) == (macs, weight, axis)
    assert layer.weights == math.prod(weight)
    assert layer.inputs == math.prod(shape[1:])
    assert layer.outputs == module(torch.zeros(shape))[0].numel()
    assert layer.transposed == isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d)


def test_layers_called_more_than_once_or_tied_count_their_calls_and_store_once() -> None:
    found = {
        name: layers(net, example) for name, net, example in zoo() if name in ("layer used twice", "tied embedding")
    }
    shared, out = found["layer used twice"]
    assert (shared.macs, shared.weights, shared.inputs) == (2 * 16, 16, 8)
    assert (out.macs, out.weights) == (8, 8)
    embed, mix, tied = found["tied embedding"]
    assert (embed.macs, embed.weights, embed.input) == (0, 28, None)
    assert (mix.macs, mix.weights) == (3 * 16, 16)
    assert (tied.macs, tied.weights, tied.weight, tied.input) == (28, 0, "embed.weight", "out.input")


def test_batch_size_does_not_matter() -> None:
    for batch in (1, 3):
        assert [m.macs for m in layers(lenet5(), torch.zeros(batch, 1, 28, 28))] == list(LENET.values())


def test_normalisation_is_found_only_where_it_alone_follows() -> None:
    nets = {name: layers(net, example) for name, net, example in zoo()}
    assert [m.norm for m in nets["residual"]] == ["norm1", "norm2", None]
    assert [m.norm for m in nets["depthwise"]] == ["1", None]
    assert [m.norm for m in nets["sequential"]] == [None, None]


def test_smallest_input_and_first_layer() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    first, second = layers(net, torch.tensor([[-1.5, 2.0], [0.5, 3.0]]))
    assert (first.first, first.smallest) == (True, -1.5)
    assert not second.first
    assert second.smallest >= 0
    assert layers(net, torch.ones(2, 2, requires_grad=True))[0].first


def test_tracing_leaves_the_network_as_it_was() -> None:
    net = lenet5().train()
    net[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    layers(net, torch.zeros(1, 1, 28, 28))
    assert net.training
    assert all(module.training for module in net.modules())
    assert [p.requires_grad for p in net.parameters()] == [False] + [True] * 7
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


REFUSED = {
    "nothing to quantize": (nn.Sequential(nn.ReLU()), torch.zeros(1, 2), "no layer that probq can quantize"),
    "wrong example": (nn.Linear(3, 2), torch.zeros(1, 4), r"cannot run on the example \(shapes \[\(1, 4\)\]\)"),
    "no batch": (nn.Linear(3, 2), torch.zeros(0, 3), "batch axis"),
    "no tensor": (nn.Linear(3, 2), (3,), "cannot run|batch axis"),
    "never reached": (nn.ModuleList([nn.Linear(3, 2)]), torch.zeros(1, 3), "cannot run"),
}


@pytest.mark.parametrize(("net", "example", "part"), REFUSED.values(), ids=REFUSED)
def test_tracing_refuses(net: nn.Module, example: object, part: str) -> None:
    with pytest.raises(ProbqError, match=part):
        layers(net, example)


class Unreached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_a_layer_the_example_never_reaches_is_named() -> None:
    with pytest.raises(ProbqError, match="never reaches layer spare"):
        layers(Unreached(), torch.zeros(1, 3))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    net[0].weight.data[0, 1] = value
    with pytest.raises(ProbqError, match=r"0\.weight holds a value that is not finite"):
        layers(net, torch.zeros(1, 3))


# Costs

LAYER = Layer("a", "a.weight", "a.input", macs=100, weights=20, inputs=5, outputs=4, shape=(4, 5))


def test_costs_by_hand() -> None:
    assert costs.bops(LAYER, 2, 8) == 1600
    assert costs.storage(LAYER, 2, 8) == 40
    assert costs.full([LAYER]) == 100 * 32 * 32
    assert costs.full([LAYER, LAYER], costs.storage) == 1280
    np.testing.assert_array_equal(costs.pairs(LAYER, (0, 2), (1, 4, 8)), [[0, 0, 0], [200, 800, 1600]])


def test_total_of_unnamed_quantizers_is_float() -> None:
    assert costs.total([LAYER], {}) == 100 * 32 * 32
    assert costs.total([LAYER], {"a.weight": 2}) == 100 * 2 * 32
    assert costs.total([LAYER], {"a.weight": np.array([0, 2, 2, 4]), "a.input": 8}) == 100 * 8 * (0 + 2 + 2 + 4) / 4


def test_expected_cost_by_enumeration() -> None:
    weights = torch.softmax(torch.randn(6, 3), -1)
    inputs, table = torch.softmax(torch.randn(2), -1), np.random.default_rng(0).random((3, 2))
    expected = sum(
        float(weights[g, i]) / 6 * float(inputs[j]) * table[i, j] for g in range(6) for i in range(3) for j in range(2)
    )
    assert float(costs.expected(table, weights.reshape(2, 3, 3), inputs)) == pytest.approx(expected, rel=1e-6)


def test_public_names_count_the_same() -> None:
    assert probq.layers(lenet5(), torch.zeros(1, 1, 28, 28))[0].macs == 460_800


@pytest.mark.parametrize("kind", [nn.Linear, nn.Sigmoid], ids=["layer", "function"])
@pytest.mark.parametrize("name", ["a/b", "/"])
def test_a_slash_in_a_name_is_refused_before_the_fit(kind: type[nn.Module], name: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    net.add_module("a", nn.Sequential())
    net.a.add_module("b", nn.Linear(4, 4))
    net.add_module(name, kind(4, 4) if kind is nn.Linear else kind())
    with pytest.raises(ProbqError, match=f"the module '{name}' has a slash in its name; add it under"):
        probq.quantize(net, torch.randn(2, 4))


def test_a_slash_in_the_name_of_a_module_that_is_no_layer_is_taken() -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    net.add_module("0/0", nn.ReLU())
    x = torch.randn(8, 4)
    assert probq.lower(probq.quantize(net, x))(x.numpy()).shape == (8, 4)
