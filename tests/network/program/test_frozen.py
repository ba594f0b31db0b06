"""What a network's owner has frozen stays what it is, and pruned zeros stay zeros where the plan says so."""

from pathlib import Path
from typing import Any

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


def _fitted(net: nn.Module, plan: probq.Plan | None = None, epochs: int = 3, **options: Any) -> probq.Quantized:
    x, batches = _data()
    q = probq.quantize(net, x, plan)
    probq.fit(q, batches, probq.Budget(percent=5), epochs=epochs, seed=0, progress=False, **options)
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


def _pruned() -> nn.Sequential:
    net = _net()
    for layer in (net[0], net[3]):
        size = layer.weight.detach().abs()
        layer.weight.data[size < size.median()] = 0
    net[0].weight.data[1] = 0
    return net


def _levels(q: probq.Quantized, a: probq.Assignment, name: str) -> Tensor:
    """Level of every weight in units of its scale, by indexing."""
    ladder = q.weights[name].ladder
    bits = np.reshape(a.widths[name], q.weights[name].gates)
    rungs = np.broadcast_to(np.searchsorted(ladder.bits, bits), a.codes[name].shape)
    tables = [rung.levels().tolist() for rung in ladder.rungs]
    return torch.tensor([tables[k][c] for k, c in zip(rungs.ravel(), a.codes[name].ravel(), strict=True)])


ZERO_PLANS = {
    "usual": probq.Plan(weight=probq.codebooks.ladder(2, 4, 8), keep_zeros=True),
    "per channel, pruned rung": probq.Plan(weight=probq.codebooks.ladder(0, 2, 4), gates="channel", keep_zeros=True),
    "integer multipliers": probq.Plan(weight=probq.codebooks.ladder(2, 4, 8), profile="dyadic", keep_zeros=True),
    "all levels": probq.Plan(weight=probq.codebooks.ladder(2, 3), codes=7, spread=1.0, keep_zeros=True),
    "a table": probq.Plan(
        weight=probq.codebooks.ladder(probq.codebooks.Table((-3.0, 0.0, 1.0)), 4), codes=3, keep_zeros=True
    ),
    "mean gradient": probq.Plan(
        weight=probq.codebooks.ladder(2, 4), estimator=probq.estimators.MeanGradient(), keep_zeros=True
    ),
    "local noise": probq.Plan(
        weight=probq.codebooks.ladder(2, 4), estimator=probq.estimators.LocalReparametrization(), keep_zeros=True
    ),
}


@pytest.mark.parametrize("plan", ZERO_PLANS.values(), ids=ZERO_PLANS.keys())
def test_zeros_stay_zeros_in_decisions_draws_files_and_integers(plan: probq.Plan, tmp_path: Path) -> None:
    net, rounding = _pruned(), plan.multipliers > 1
    q = _fitted(net, plan, epochs=2, rounding=rounding)
    q.save(tmp_path / "q.safetensors")
    loaded = probq.load(tmp_path / "q.safetensors", net)
    probq.fit(loaded, _data()[1], epochs=1, seed=0)
    for network in (q, loaded):
        for a in (network.mode(), *network.sample(9, seed=0)):
            for name in ("0.weight", "3.weight"):
                zeros = net.get_parameter(name).reshape(-1) == 0
                assert zeros.any()
                assert not _levels(network, a, name)[zeros].any()
            assert _levels(network, a, "3.weight").any()
    tuned = q.at(q.sample(1, seed=1)[0])
    probq.fit(tuned, _data()[1], epochs=1, seed=0, rounding=rounding)
    for node in probq.lower(tuned).nodes:
        weight = getattr(node, "weight", None)
        for name in ("0.weight", "3.weight") if weight is not None else ():
            if weight.shape == net.get_parameter(name).shape:
                assert not weight[(net.get_parameter(name) == 0).numpy()].any()


def test_without_the_option_pruned_zeros_are_learned() -> None:
    net = _pruned()
    q = _fitted(net, probq.Plan(weight=probq.codebooks.ladder(8), input=probq.codebooks.ladder(4, signed=True)))
    assert _levels(q, q.mode(), "3.weight")[net[3].weight.reshape(-1) == 0].any()


LEARNED = probq.codebooks.learned((-1.0, 0.0, 1.0))
REFUSED = {
    "binary": ({"weight": probq.codebooks.ladder(1, 2)}, "the one of 1 bits lacks"),
    "learned": (
        {"weight": probq.codebooks.ladder(LEARNED, 8)},
        "the one of 2 bits lacks",
    ),
    "free": ({"weight": probq.codebooks.ladder(2, 3), "free_codes": True}, "use one of them"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_zeros_that_cannot_be_kept_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(probq.ProbqError, match=message):
        probq.Plan(keep_zeros=True, **options)
