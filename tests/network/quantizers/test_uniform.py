"""Uniform baselines go through the same steps as learned widths, though there is no width to learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from torch import nn

import probq
from probq import Budget, Plan, ProbqError, Quantized
from probq.codebooks import ladder

XS = torch.rand(40, 4, generator=torch.Generator().manual_seed(1))
YS = (XS.sum(1) > 2).long()
PAIRS = [(XS[k : k + 16], YS[k : k + 16]) for k in range(0, 40, 16)]
WIDTHS = {"0.weight": 2, "3.weight": 2, "0.input": 8, "3.input": 4}
PERCENT = 100 * (4 * 6 * 2 * 8 + 6 * 2 * 2 * 4) / (1024 * (4 * 6 + 6 * 2))


def baseline(**options: Any) -> Quantized:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).eval()
    return probq.quantize(net, XS, probq.uniform(2, 4, **options))


@pytest.mark.filterwarnings("ignore:widths are fixed and the last fit rounded:UserWarning")  # so draws are all the same
@pytest.mark.parametrize("gates", ["tensor", "channel", "weight"])
@pytest.mark.parametrize("codes", [1, 2])
@pytest.mark.parametrize("budget", [None, Budget(percent=5)])
def test_the_whole_path_of_a_baseline(gates: str, codes: int, budget: Budget | None, tmp_path: Path) -> None:
    q = baseline(gates=gates, codes=codes)
    history = probq.fit(q, PAIRS, budget, 4, seed=0, progress=False, validation=PAIRS)
    frame = history.to_frame()
    assert list(frame.phase) == ["search"] * 7 + ["tune"] * 5
    assert frame.percent.to_numpy() == pytest.approx(PERCENT)
    assert q.calibrated
    assert not q.folded
    a = q.mode()
    assert {name: np.unique(bits).tolist() for name, bits in a.widths.items()} == {n: [b] for n, b in WIDTHS.items()}
    assert a.percent() == pytest.approx(PERCENT)
    assert (a.log_prob, a.gap) == (0, 0)
    assert all(np.array_equal(d.widths["0.weight"], a.widths["0.weight"]) for d in q.sample(2, seed=0))
    model = probq.lower(q)
    integers = model(XS.numpy()) * model.output_scale
    assert np.array_equal(integers, q.at(a)(XS.double()).numpy())
    table = probq.table(q)
    assert table["mode"].to_dict() == WIDTHS
    assert table["entropy"].abs().max() == 0
    q.save(tmp_path / "q.safetensors")
    assert probq.load(tmp_path / "q.safetensors", q.net).mode() == a
    assert probq.decide(q, budget, PAIRS, progress=False).widths["3.input"] == 4
    probq.to_arviz(q, draws=4)
    pyplot.close(probq.plot.widths(q).figure)


def test_a_fixed_network_is_only_tuned() -> None:
    q = baseline()
    fixed = q.at(q.mode())
    history = probq.fit(fixed, PAIRS, None, 2, seed=0, progress=False)
    assert set(history.to_frame().phase) == {"tune"}
    assert fixed.folded


@pytest.mark.parametrize("profile", ["shift", "dyadic"])
@pytest.mark.parametrize("decided", [False, True])
def test_normalisation_follows_the_batches_where_folding_it_late_keeps_the_codes(profile: str, decided: bool) -> None:
    q = baseline(profile=profile)
    q = q.at(q.mode()) if decided else q
    before = q.net[1].running_mean.clone()
    tuning = probq.steps(q, PAIRS, epochs=8 if decided else 20, seed=0)
    folded = [q.folded for step in tuning if step.phase == "tune"]
    live = len(folded) - 1 if profile == "dyadic" else 0
    assert folded == [False] * live + [True] * (len(folded) - live)
    assert torch.equal(q.net[1].running_mean, before) == (decided and profile == "shift")
    model = probq.lower(q)
    assert np.array_equal(model(XS) * model.output_scale, q(XS).double().numpy())
    assert q.folded == decided


@pytest.mark.parametrize("early", [True, False])
def test_normalisation_is_estimated_once_no_weight_moves_any_more(early: bool) -> None:
    q = baseline(profile="dyadic")
    q = q.at(q.mode())
    tuning = probq.steps(q, PAIRS, epochs=8, seed=0)
    for _ in range(4):
        next(tuning)
    running = q.net[1].running_mean.clone()
    for _ in () if early else tuning:
        pass
    tuning.close()
    assert q.folded
    with torch.no_grad():  # by hand: means of the convolution's outputs, batch by batch
        codes, scale = q.mode().codes["0.weight"] - 1.0, q.weights["0.weight"].scales()[0]
        weight = torch.as_tensor(codes, dtype=torch.float32) * scale * q.net[1].weight.sign()[:, None]
        outputs = [torch.round(x * 256).clamp(0, 255) / 256 @ weight.T + q.net[0].bias for x, _ in PAIRS]
        means = torch.stack([y.mean(0) for y in outputs]).mean(0)
    assert not torch.allclose(running, means, atol=0.1)
    assert torch.allclose(q.net[1].running_mean, means, atol=2e-3)


def test_a_budget_below_is_refused_before_the_first_step() -> None:
    with pytest.raises(ProbqError, match="cheapest widths cost 480"):
        probq.fit(baseline(), PAIRS, Budget(limit=479), 1)


def test_signs_follow_the_example_and_options_reach_the_plan() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    q = probq.quantize(net, XS, probq.uniform(3, 5, scales="tensor", network_input=ladder(6)))
    assert [q.quantizer(f"{n}.input").ladder.signed for n in (1, 3)] == [True, False]
    assert q.mode().widths == {
        **{f"{n}.weight": 3 for n in (0, 1, 3)}, "0.input": 6, "1.input": 5, "3.input": 5
    }  # fmt: skip
    assert q.quantizer("0.weight").log2_scale.shape == (1,)
    by_hand = Plan(weight=ladder(3), input=ladder(5, signed=False), scales="tensor", network_input=ladder(6))
    assert probq.uniform(3, 5, scales="tensor", network_input=ladder(6))(q.layers[2]) == by_hand
    with pytest.raises(ProbqError, match="uniform has no option 'weights'"):
        probq.uniform(3, 5, weights=2)
