"""Normalisation at decided widths, against torch's own running averages in a network of rounded weights."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probq
from probq import ProbqError
from probq.testing.zoo import Residual


def data(*shape: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.rand(n, *shape, generator=draw) for n in (12, 7, 12)]


def network(kind: str) -> tuple[Any, list[Tensor]]:
    torch.manual_seed(0)
    made = {
        "linear": (nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)), data(5)),
        "one axis": (nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 2, 2)), data(2, 8)),
        "groups": (nn.Sequential(nn.Conv2d(4, 8, 3, groups=2, bias=False), nn.BatchNorm2d(8)), data(4, 6, 6)),
    }[kind]
    made[0][1].running_mean.fill_(0.3)
    return made[0].eval(), made[1]


@pytest.mark.parametrize("profile", ["shift", "dyadic"])
@pytest.mark.parametrize("kind", ["linear", "one axis", "groups"])
def test_statistics_are_averages_of_what_rounded_weights_give(kind: str, profile: str) -> None:
    net, batches = network(kind)
    q = probq.quantize(net, batches[0], probq.uniform(3, 4, profile=profile))
    q = q.at(q.mode())
    before = copy.deepcopy(q.state_dict())
    found = probq.ptq.norms(q, batches, anew=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in q.state_dict().items())

    plain, weight, x = copy.deepcopy(net), q.weights["0.weight"], q.inputs["0.input"]
    scale = weight.scales()[0]
    with torch.no_grad():
        levels = torch.floor(net[0].weight / scale + 0.5).clamp(-3, 3)
        plain[0].weight.copy_(scale * levels)
        norm = plain[1]
        norm.reset_running_stats()
        norm.momentum = None  # torch's own average over all batches
        norm.train()
        for batch in batches:
            step = x.scales()[0]
            rounded = step * torch.floor(batch / step + 0.5).clamp(0, 255)
            bias, grid = net[0].bias, (scale * step).reshape(-1)
            if bias is not None:
                plain[0].bias.copy_(grid * torch.floor(bias / grid + 0.5))
            plain[:2](rounded)
    torch.testing.assert_close(found.net[1].running_mean, norm.running_mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.net[1].running_var, norm.running_var, atol=1e-5, rtol=1e-5)
    assert found.mode().widths == q.mode().widths
    assert found.folded
    model = probq.lower(found)
    assert np.array_equal(model(batches[0].numpy()) * model.output_scale, found(batches[0].double()).detach().numpy())


@pytest.mark.parametrize("bits", [2, 8])
def test_statistics_move_by_what_rounding_changes(bits: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6)).eval()
    for norm in (net[1], net[4]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    batches = data(5)
    decided = probq.quantize(net, batches[0], probq.uniform(bits, 8))
    decided = decided.at(decided.mode())
    found, anew = probq.ptq.norms(decided, batches), probq.ptq.norms(decided, batches, anew=True)
    hidden = [batch.double() for batch in batches]
    plain = copy.deepcopy(net).double()
    for layer, place in ((plain[0], 1), (plain[3], 4)):
        before = net[place]
        with torch.no_grad():
            outputs = [layer(h) for h in hidden]
            hidden = [torch.relu((h - h.mean(0)) / (h.var(0, correction=0) + before.eps).sqrt()) for h in outputs]
            mean = torch.stack([h.mean(0) for h in outputs]).mean(0)
            var = torch.stack([h.var(0) for h in outputs]).mean(0)
        rounded, own = anew.net[place], found.net[place]
        expected = (before.running_var + before.eps) * (rounded.running_var + before.eps) / (var + before.eps)
        torch.testing.assert_close(own.running_mean, (before.running_mean + rounded.running_mean - mean).float())
        torch.testing.assert_close(own.running_var + own.eps, expected.float())
    if bits == 8:  # little rounding, little change, however few the examples
        moved, alone = ((other.net[4].running_var - net[4].running_var).norm() for other in (found, anew))
        assert moved < alone / 4
    again = probq.ptq.norms(found, batches)
    torch.testing.assert_close(again.net[4].running_var, found.net[4].running_var)


def test_codes_follow_the_new_gain_and_the_training_mode_stays() -> None:
    torch.manual_seed(0)
    batches = data(2, 6, 6)
    q = probq.quantize(Residual().train(), batches[0], probq.uniform(4, 4, profile="shift"))
    q = q.at(q.mode())
    found = probq.ptq.norms(q, batches)
    assert found.training
    assert not found.net.norm1.training  # folded
    for name in ("stem", "conv"):
        norm, layer = {"stem": found.net.norm1, "conv": found.net.norm2}[name], found.net.get_submodule(name)
        gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).reshape(-1, 1, 1, 1)
        own = found.weights[f"{name}.weight"].scales()[0]
        scale = 2.0 ** torch.floor(torch.log2(own) + torch.log2(gain.abs()) + 0.5)
        expected = torch.floor(layer.weight * gain / scale + 0.5).clamp(-7, 7) + 7
        assert np.array_equal(expected.detach().numpy(), found.mode().codes[f"{name}.weight"])


def test_without_normalisation_nothing_changes_and_held_statistics_stay() -> None:
    x = data(5)
    q = probq.quantize(nn.Sequential(nn.Linear(5, 3)), x[0], probq.uniform(2, 2))
    q = q.at(q.mode())
    assert probq.ptq.norms(q, x).mode() == q.mode()
    net, x = network("linear")
    net.train()[1].eval()
    held = probq.quantize(net, x[0], probq.uniform(2, 2))
    assert held.held == ("1",)
    found = probq.ptq.norms(held.at(held.mode()), x)
    assert torch.equal(found.net[1].running_mean, net[1].running_mean)


def test_bad_input_is_told() -> None:
    net, x = network("linear")
    q = probq.quantize(net, x[0])
    with pytest.raises(ProbqError, match="norms takes a decided network"):
        probq.ptq.norms(q, x)
    with pytest.raises(ProbqError, match="norms needs data"):
        probq.ptq.norms(q.at(q.mode()), [])
