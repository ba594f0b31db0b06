"""What a network's owner has frozen stays what it is, and pruned zeros stay zeros where the plan says so."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probq

Batches = list[tuple[Tensor, Tensor]]


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def _data() -> tuple[Tensor, Batches]:
    torch.manual_seed(1)
    x = torch.randn(64, 4)
    return x, [(x, torch.randint(3, (64,)))] * 4


def _fitted(net: nn.Module, plan: probq.Plan | None = None, **options: float) -> probq.Quantized:
    x, batches = _data()
    q = probq.quantize(net, x, plan)
    probq.fit(q, batches, probq.Budget(percent=4), epochs=5, seed=0, **options)
    return q


def test_frozen_parameters_stay_and_their_codes_are_those_of_rounding() -> None:
    net = _net()
    net[0].weight.requires_grad_(False)
    net[3].bias.requires_grad_(False)
    q = _fitted(net)
    assert any("0.weight, 3.bias stay what they are" in note for note in q.notes)
    for name, parameter in net.named_parameters():
        assert torch.equal(q.net.get_parameter(name), parameter) == (name in ("0.weight", "3.bias")), name
    sampled = q.sample(8, seed=0)
    same = [a for a in sampled if a.widths["0.weight"] == sampled[0].widths["0.weight"]]
    assert len(same) > 1
    assert all(np.array_equal(a.codes["0.weight"], same[0].codes["0.weight"]) for a in same)


def test_codes_of_a_frozen_layer_are_the_nearest_levels_by_hand() -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    net.requires_grad_(False)
    plan = probq.Plan(weight=probq.codebooks.ladder(4))
    q = _fitted(net, plan)
    scale = q.weights["0.weight"].scales()[0].detach().double()
    by_hand = torch.floor(net[0].weight.double() / scale + 0.5).clamp(-7, 7) + 7
    assert np.array_equal(q.mode().codes["0.weight"], by_hand.numpy())
    assert torch.equal(q.net[0].bias, net[0].bias)


def test_an_embedding_from_pretrained_vectors_stays_frozen() -> None:
    torch.manual_seed(0)
    table = torch.randn(6, 4)
    net = nn.Sequential(nn.Embedding.from_pretrained(table), nn.Flatten(), nn.Linear(8, 3))
    x = torch.randint(6, (32, 2))
    q = probq.quantize(net, x)
    probq.fit(q, [(x, torch.randint(3, (32,)))] * 4, epochs=3, seed=0)
    assert torch.equal(q.net[0].weight, table)
    assert not torch.equal(q.net[2].weight, net[2].weight)


@pytest.mark.parametrize("frozen", ["evaluation mode", "parameters"])
@pytest.mark.parametrize("profile", ["shift", "dyadic"])
def test_normalisation_in_evaluation_mode_keeps_its_statistics(frozen: str, profile: str, tmp_path: Path) -> None:
    net = _net()
    net[1].running_mean.fill_(0.25)
    if frozen == "parameters":
        net.eval()
        net[1].requires_grad_(False)
    net[1].eval()
    q = _fitted(net, probq.Plan(profile=profile))
    assert torch.equal(q.net[1].running_mean, torch.full((8,), 0.25))
    assert torch.equal(q.net[1].running_var, torch.ones(8))
    assert torch.equal(q.net[1].weight, net[1].weight) == (frozen == "parameters")
    assert any("the statistics of 1 stay what they are" in note for note in q.notes)
    q.save(tmp_path / "q.safetensors")
    loaded = probq.load(tmp_path / "q.safetensors", net)
    probq.fit(loaded, _data()[1], epochs=1, seed=0)
    assert torch.equal(loaded.net[1].running_mean, torch.full((8,), 0.25))
    assert torch.equal(loaded.net[1].weight, net[1].weight) == (frozen == "parameters")


def test_normalisation_that_nobody_froze_follows_the_data() -> None:
    net = _net().eval()
    q = _fitted(net)
    assert not torch.equal(q.net[1].running_mean, net[1].running_mean)
    assert not any("stay what they are" in note for note in q.notes)
