"""Learned rounding: never above nearest, near the best of all roundings, and what is taken and left."""

import copy
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probq
from probq import ProbqError, Quantized
from probq.codebooks import ladder
from probq.codebooks.powers_of_two import powers_of_two
from probq.testing.zoo import Residual, TiedEmbedding, Twice
from probq.training.ptq.reconstruction.partial_run import PartialRun
from probq.training.ptq.reconstruction.units import units


def decided(net: nn.Module, x: Tensor, plan: Any = None) -> Quantized:
    q = probq.quantize(net.eval(), x, plan or probq.uniform(2, 8))
    return q.at(q.mode())


def learned(q: Quantized, x: Tensor, **options: Any) -> Quantized:
    return probq.ptq.reconstruct(q, [x], progress=False, **options)


def error(q: Quantized, other: Quantized, x: Tensor) -> float:
    """Squared distance of a decided network's outputs from another one's float outputs."""
    with torch.no_grad():
        return float((q(x) - other.net(x)).double().square().sum())


def two_levels(q: Quantized, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The codes below and above every weight, in numpy; both are the end of the range beyond it."""
    scale = q.weights[name].scales()[0].detach().numpy()
    levels = q.weights[name].levels(0)
    table = (levels.levels() if hasattr(levels, "levels") else levels).numpy()
    u = q.net.get_parameter(name).detach().numpy() / scale
    below = np.clip(np.searchsorted(table, u, side="right") - 1, 0, len(table) - 2)
    return below, below + 1


def places(weight: Any, seed: int) -> tuple[int, int]:
    """How many of all 256 roundings of eight weights are better than nearest ones, and than the learned ones."""
    torch.manual_seed(seed)
    x = torch.rand(64, 1) + 0.3 * torch.rand(64, 8)
    q = decided(nn.Linear(8, 1), x, probq.Plan(weight=weight, network_input=ladder(8), profile="shift"))
    found = learned(q, x, seed=seed, steps=80)
    below, above = two_levels(q, ".weight")
    mode, own = q.mode(), found.mode().codes[".weight"]
    ways = [np.array(ups).reshape(1, 8) for ups in itertools.product((False, True), repeat=8)]
    every = [replace(mode, codes={".weight": np.where(up, above, below).astype(np.int32)}) for up in ways]
    assert any(np.array_equal(own, a.codes[".weight"]) for a in [mode, *every])
    with torch.no_grad():
        distances = [float((y - q.net(x)).double().square().sum()) for y in q.outputs(every, x)]
    nearest, reached = (sum(d < error(n, q, x) * (1 - 1e-6) for d in distances) for n in (q, found))
    return nearest, reached


@pytest.mark.parametrize(("weight", "typical"), [(ladder(2), 2), (ladder(3), 2), (ladder(powers_of_two(3)), 40)])
def test_it_is_near_the_best_of_all_roundings(weight: Any, typical: int) -> None:
    """Eight correlated inputs of one output, all 256 ways up or down, computed as the integer network computes."""
    found = [places(weight, seed) for seed in range(6)]
    assert all(reached <= nearest for nearest, reached in found)
    assert np.median([reached for _, reached in found]) <= typical
    assert sum(reached for _, reached in found) < 0.8 * sum(nearest for nearest, _ in found)


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    groups = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.Flatten()]
    axis = [nn.Conv1d(2, 4, 3, padding=1), nn.Tanh(), nn.MaxPool1d(2), nn.Conv1d(4, 2, 3), nn.Flatten()]
    plain = [nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3)]
    return {
        "linear": (nn.Sequential(*plain), torch.randn(40, 6)),
        "one axis": (nn.Sequential(*axis, nn.Linear(4, 2)), torch.randn(20, 2, 8)),
        "groups": (nn.Sequential(*groups, nn.Linear(16, 3)), torch.rand(20, 2, 6, 6)),
        "residual": (Residual(), torch.randn(12, 2, 6, 6)),
        "twice": (Twice(), torch.randn(12, 4)),
        "transposed": (
            nn.Sequential(nn.ConvTranspose2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 2)),
            torch.rand(12, 2, 4, 4),
        ),
    }


@pytest.mark.parametrize("unit", ["layer", "pair", "block"])
@pytest.mark.parametrize("name", networks())
def test_no_unit_ends_above_nearest_rounding(name: str, unit: str) -> None:
    """Each unit's objective with the codes before it learned, at nearest codes and at those that were found."""
    net, x = networks()[name]
    q = decided(net, x)
    for seed in range(2):
        found = learned(q, x, unit=unit, steps=10, seed=seed)
        assert found.mode().widths == q.mode().widths
        run, final = PartialRun(q, q, [x]), PartialRun(found, q, [x])
        for layers in units(q, unit):
            assert run.enter(layers)
            own = {layer.weight: final.levels[layer.weight] for layer in layers}
            nearest = {layer.weight: run.levels[layer.weight] for layer in layers}
            assert run.objective(own) <= run.objective(nearest) * (1 + 1e-5)
            run.levels.update(own)
    assert len(probq.lower(found)(x.numpy())) == len(x)


def test_the_objective_is_what_enters_the_next_layer() -> None:
    """A layer, its ReLU and pooling by hand in numpy: float against rounded, over batches of 32."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.rand(70, 4)
    q = decided(net, x)
    run = PartialRun(q, q, [x[:40], x[40:]])
    assert [len(part) for part in run.batches] == [32, 8, 30]
    step, scale = q.inputs["0.input"].scales().item(), q.weights["0.weight"].scales()[0]
    rounded = step * torch.floor(x.double() / step + 0.5).clamp(0, 255)
    grid = (scale * step).reshape(-1).double()
    bias = grid * torch.floor(net[0].bias.double() / grid + 0.5)
    weight = scale * torch.floor(net[0].weight / scale + 0.5).clamp(-1, 1)
    expected = (torch.relu(net[0](x)).double() - torch.relu(rounded @ weight.double().T + bias)).detach()
    assert run.enter([q.layers[0]])
    assert run.objective({}) == pytest.approx(float(expected.square().sum()), rel=1e-4)
    assert run.enter([q.layers[1]])
    assert run.objective({}) == pytest.approx(error(q, q, x), rel=1e-4)


def test_outputs_come_nearer_and_the_seed_decides() -> None:
    net, x = networks()["groups"]
    q = decided(net, x, probq.uniform(2, 8, profile="shift"))
    before = {name: tensor.clone() for name, tensor in q.state_dict().items()}
    found = learned(q, x, steps=100)
    assert error(found, q, x) < 0.8 * error(q, q, x)
    assert found.mode() == learned(q, x, steps=100).mode()
    assert all(torch.equal(before[name], tensor) for name, tensor in q.state_dict().items())
    rounded = probq.ptq.gpfq(q, [x])
    again = learned(rounded, x, reference=q, steps=100)
    assert error(again, q, x) < error(q, q, x)


def test_a_network_in_double_precision_is_learned_like_one_in_single() -> None:
    """Neither ends above nearest rounding, and nearly all codes are the same."""
    net, x = networks()["groups"]
    found = {}
    for dtype in (torch.float32, torch.float64):
        own, example = copy.deepcopy(net).to(dtype), x.to(dtype)
        q = decided(own, example)
        found[dtype] = learned(q, example, steps=50)
        assert error(found[dtype], q, example) <= error(q, q, example)
    codes = [q.mode().codes for q in found.values()]
    assert np.mean([np.mean(codes[0][n] == codes[1][n]) for n in codes[0]]) > 0.9


def test_units_are_layers_pairs_and_blocks() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
            self.body = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(2)))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(torch.relu(self.stem(x))))

    q = decided(Blocks(), torch.rand(8, 4))
    names = {unit: [[layer.name for layer in part] for part in units(q, unit)] for unit in ("layer", "pair", "block")}
    every = ["stem", "body.0.0", "body.0.2", "body.1.0", "body.1.2", "head"]
    assert names["layer"] == [[name] for name in every]
    assert names["pair"] == [every[:2], every[2:4], every[4:]]
    assert names["block"] == [every[:1], every[1:3], every[3:5], every[5:]]


def test_what_it_cannot_take_stays() -> None:
    """A weight of two layers, an embedding, and zeros that a plan keeps."""
    torch.manual_seed(0)
    plan = probq.uniform(2, 8, activation=None)
    tied = decided(TiedEmbedding(), torch.randint(0, 7, (16, 5)), plan)
    found = learned(tied, torch.randint(0, 7, (40, 5)), steps=10)
    assert np.array_equal(found.mode().codes["embed.weight"], tied.mode().codes["embed.weight"])
    net, x = networks()["linear"]
    net[0].weight.data[:, ::2] = 0
    kept = decided(net, x, probq.Plan(weight=ladder(3), keep_zeros=True))
    codes = learned(kept, x, steps=50).mode().codes["0.weight"]
    assert (codes[:, ::2] == 3).all()


def test_bad_input_is_told() -> None:
    net, x = networks()["linear"]
    free = probq.quantize(net, x)
    q = free.at(free.mode())
    with pytest.raises(ProbqError, match="reconstruct takes a decided network"):
        learned(free, x)
    with pytest.raises(ProbqError, match=r"reconstruct\(reference=...\) takes a decided network"):
        learned(q, x, reference=free)
    with pytest.raises(ProbqError, match="needs data"):
        probq.ptq.reconstruct(q, [])
    with pytest.raises(ProbqError, match="takes one of 'layer', 'pair', 'block', not 'net'"):
        learned(q, x, unit="net")
    with pytest.raises(ProbqError, match="steps must be an integer"):
        learned(q, x, steps=0)
