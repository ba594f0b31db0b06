"""The same fit on a GPU as on the CPU.

`make test-gpu` runs this file; without CUDA all of it is skipped. `PROBQ_TEST_DEVICES=cpu` tries the tests themselves.
"""

import copy
import os
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import probq
from probq import Budget, Quantized

DEVICES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(name == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device"),
    )
    for name in os.environ.get("PROBQ_TEST_DEVICES", "cuda").split(",")
]
X = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = (X.mean((1, 2, 3)) > X.mean()).long()
PAIRS = [(X[k : k + 16], Y[k : k + 16]) for k in range(0, 64, 16)]
BUDGET = Budget(percent=3)


def network(order: torch.memory_format = torch.contiguous_format) -> Quantized:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()]
    return probq.quantize(nn.Sequential(*parts, nn.Linear(64, 2)).eval().to(memory_format=order), X[:8])


def fitted(q: Quantized, **options: Any) -> probq.History:
    return probq.fit(q, PAIRS, BUDGET, 4, search=0.5, seed=0, progress=False, **options)


def fabric(device: str, precision: str = "32-true") -> Any:
    """What a fit asks of a `Fabric` on one device."""
    half = precision == "bf16-mixed"
    return SimpleNamespace(
        world_size=1,
        global_rank=0,
        device=torch.device(device),
        strategy=type("SingleDeviceStrategy", (), {"precision": SimpleNamespace(precision=precision)})(),
        autocast=lambda: torch.autocast(device, torch.bfloat16) if half else nullcontext(),
        setup_dataloaders=None,
    )


@pytest.fixture(scope="module", params=DEVICES)
def trained(request: pytest.FixtureRequest) -> tuple[Quantized, probq.History]:
    q = network()
    history = fitted(q, fabric=fabric(request.param))
    assert q.device.type == request.param
    return q, history


def test_lowering_gives_the_same_integers_as_on_the_cpu(trained: tuple[Quantized, probq.History]) -> None:
    q, _ = trained
    moved = copy.deepcopy(q).cpu()
    here, there = q.mode(BUDGET), moved.mode(BUDGET)
    assert here.widths == there.widths
    assert all(np.array_equal(here.codes[name], there.codes[name]) for name in here.codes)
    assert np.array_equal(probq.lower(q, here)(X), probq.lower(moved, there)(X))
    drawn, again = q.sample(2, BUDGET, seed=0), moved.sample(2, BUDGET, seed=0)
    assert [a.widths for a in drawn] == [a.widths for a in again]


def test_the_decided_network_is_its_integers(trained: tuple[Quantized, probq.History]) -> None:
    q, history = trained
    assert len(history.steps) == 16
    model, device = probq.lower(q, q.mode(BUDGET)), q.device
    scores = q(X.to(device)).detach().cpu().double().numpy()
    assert (model(X).argmax(1) == scores.argmax(1)).mean() >= 0.95  # float32 sums are ordered by the device


def test_a_first_step_is_that_of_the_cpu(trained: tuple[Quantized, probq.History]) -> None:
    _, history = trained
    assert history.steps[0].loss == pytest.approx(fitted(network()).steps[0].loss, rel=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_changes_a_step_little(device: str) -> None:
    exact, half = network(), network()
    expected = fitted(exact, fabric=fabric(device))
    history = fitted(half, fabric=fabric(device, "bf16-mixed"))
    assert history.steps[0].loss == pytest.approx(expected.steps[0].loss, rel=0.05)
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert probq.lower(half).outputs


@pytest.mark.parametrize("device", DEVICES)
def test_channels_last_changes_nothing_but_rounding(device: str) -> None:
    plain, last = network().to(device), network(torch.channels_last).to(device)
    losses = [[step.loss for step in fitted(q).steps] for q in (plain, last)]
    assert losses[0][:4] == pytest.approx(losses[1][:4], rel=1e-3)
    assert last.net[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("device", DEVICES)
def test_a_checkpoint_goes_on_to_the_same_bits(device: str, tmp_path: Any) -> None:
    whole, q = network().to(device), network().to(device)
    fitted(whole, checkpoint=tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("probq.training.svi.loop.Loop._check_moved", _interrupted(9))
        with pytest.raises(InterruptedError):
            fitted(q, checkpoint=tmp_path / "run", every=2)
    q = network().to(device)
    fitted(q, checkpoint=tmp_path / "run", every=2)
    assert all(torch.equal(a, b) for a, b in zip(q.state_dict().values(), whole.state_dict().values(), strict=True))


def _interrupted(last: int) -> Any:
    def check(_loop: Any, _descent: Any, number: int) -> None:
        if number == last:
            raise InterruptedError

    return check
