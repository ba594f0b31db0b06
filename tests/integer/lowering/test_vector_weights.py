"""Weights of vectors as integers: 0 differing outputs in every runtime, tables in files, sizes by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exact_integers import assert_exact
from torch import nn

import probq
from probq import Plan, ProbqError
from probq.codebooks import Codebook, ladder, product, vector
from probq.integer.packing import VectorPacking, stored_bits


class Tokens(nn.Module):
    """An embedding of vectors in front of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(40, 8), nn.Linear(8, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(x).mean(1))


def convolutions(groups: int, channels: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, 8, 3, stride=2, groups=groups),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 12),
    )


def planned(books: dict[str, Codebook], **options: Any) -> Any:
    def plan(layer: probq.Layer) -> Plan:
        return Plan(weight=ladder(books.get(layer.name, 4)), input=ladder(4, signed=layer.smallest < 0), **options)

    return plan


CASES = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 8)),
        (12,),
        {"0": vector(8, 4), "2": product(4, 4)},
    ),
    "conv": (lambda: convolutions(1), (2, 10, 10), {"0": vector(3, 3, 5), "3": vector(8, 9), "7": vector(5, 2, 3)}),
    "grouped": (lambda: convolutions(2), (2, 10, 10), {"3": product(3, 2, 6)}),
    "depthwise": (lambda: convolutions(8, 8), (2, 10, 10), {"3": vector(4, 3)}),
    "transposed": (
        lambda: nn.Sequential(nn.Linear(6, 36), nn.Unflatten(1, (4, 3, 3)), nn.ConvTranspose2d(4, 8, 3, stride=2)),
        (6,),
        {"0": vector(4, 2), "2": vector(6, 6)},
    ),
}  # fmt: skip


def make(case: str, seed: int, **options: Any) -> tuple[probq.Quantized, torch.Tensor]:
    torch.manual_seed(seed)
    net, shape, books = CASES[case]
    x = torch.randn(24, *shape)
    net = net().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)  # gains of both signs
    return probq.quantize(net, x, planned(books, **options)), x


@pytest.mark.filterwarnings("ignore:the posterior was never fitted")
@pytest.mark.parametrize("case", CASES)
def test_no_output_differs_in_any_runtime(case: str, tmp_path: Path) -> None:
    profile = "shift" if case in ("linear", "transposed") else "dyadic"
    q, x = make(case, 0, profile=profile)
    assert q.at(q.mode()).mode() == q.mode()
    model = assert_exact(q.at(q.sample(1, seed=1)[0]), x, tmp_path)
    looked_up = layers(model)
    assert len(looked_up) == len(CASES[case][2])
    text, names = (tmp_path / "m.h").read_text(), {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    in_rows = len(looked_up) - (case == "transposed")  # whose weights C puts elsewhere
    assert text.count("const int8_t *vector = ") == in_rows
    assert "Gather" in names
    probq.export.onnx.write(model, tmp_path / "packed.onnx", packed=True)
    assert probq.export.verify(model, tmp_path / "packed.onnx", x).differing == 0


def test_embeddings_are_tables_of_tables(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 40, (9, 5))
    q = probq.quantize(Tokens(), x, lambda layer: Plan(weight=ladder(product(4, 2) if layer.name == "table" else 4)))
    assert_exact(q, x, tmp_path)


def layers(model: probq.IntegerModel) -> list[Any]:
    return [node for node in model.nodes if isinstance(node.packing.get("weight"), VectorPacking)]


def test_integers_are_the_entries_of_the_decided_codes() -> None:
    q, _ = make("conv", 3)
    assignment = q.mode()
    for node in layers(probq.lower(q, assignment)):
        values, codes = node.tensors["weight"], assignment.codes[f"{node.name}.weight"]
        assert np.array_equal(node.packing["weight"].table[0][codes.reshape(-1)].reshape(values.shape), values)


def test_storage_by_hand_is_that_of_costs_and_files(tmp_path: Path) -> None:
    q, x = make("linear", 0)
    weights = {"0": 240 // 4 * 3 + 8 * 4 * 8, "2": 160 // 5 * 2 + 4 * 4 * 5 * 8}
    assert q.mode().cost(probq.cost.storage) == sum(weights.values())
    assert q.mode().widths["0.weight"] == 0.75
    model = probq.lower(q)
    found = {node.name: stored_bits(node.tensors["weight"].shape, node.packing["weight"]) for node in layers(model)}
    assert found == weights
    model.save(tmp_path / "m.safetensors")
    again = probq.IntegerModel.load(tmp_path / "m.safetensors")
    assert again.sha256() == model.sha256()
    assert np.array_equal(again(x), model(x))


def test_bit_operations_are_those_of_the_entries() -> None:
    q, _ = make("linear", 0)
    widths = q.mode().widths
    entries = 240 * 8 * widths["0.input"] + 160 * 8 * widths["2.input"]
    assert q.mode().cost() == entries
    assert float(q.expected_cost(q.cost_tables())) == entries


def test_posteriors_are_saved_and_loaded(tmp_path: Path) -> None:
    q, x = make("conv", 1)
    probq.fit(q, [(x, torch.randint(0, 12, (24,)))], epochs=2, rounding=False, progress=False)
    q.save(tmp_path / "q.safetensors")
    again = probq.load(tmp_path / "q.safetensors", CASES["conv"][0]())
    assert again.mode() == q.mode()
    assert again.layers == q.layers
    assert torch.equal(again(x), q(x))
    assert [a == b for a, b in zip(again.sample(2, seed=3), q.sample(2, seed=3), strict=True)] == [True, True]


@pytest.mark.parametrize("target", ["qonnx", "memory", "hls", "verilog"])
def test_other_targets_refuse_by_name(target: str, tmp_path: Path) -> None:
    model = probq.lower(make("linear", 0, profile="shift")[0])
    with pytest.raises(ProbqError, match="has no tables of vectors, which the weight of 0 is looked up in"):
        getattr(probq.export, target).write(model, tmp_path / "out")


def test_a_mixed_ladder_decides_under_a_limit_of_storage() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)), torch.randn(64, 16)
    y = net(x).argmax(1)
    q = probq.quantize(net, x, Plan(weight=ladder(vector(8, 4), vector(16, 2), 4, 8), input=ladder(8)))
    budget = probq.Budget(limit=3000, cost=probq.cost.storage)
    probq.fit(q, [(x, y)], budget=budget, epochs=30, progress=False)
    a = q.mode(budget)
    assert a.cost(probq.cost.storage) <= 3000
    assert a.widths["0.weight"] in (0.75, 2, 4, 8)
    probq.lower(q, a)
    for drawn in q.sample(2, budget, seed=0):
        probq.lower(q, drawn)
