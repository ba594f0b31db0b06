"""Tables and draws, against probabilities worked out by hand, enumeration, and numpy's moments."""

import math

import numpy as np
import pytest
import torch
from enumerated_widths import by_hand, enumerated, example, network, quantized
from torch import Tensor, nn

import probq
from probq import cost as costs
from probq.codebooks import ladder
from probq.decisions.within_budget import probability_within
from probq.evaluation.diagnostics import width_draws
from probq.evaluation.diagnostics.table import format_table

SIGMOID_1 = 1 / (1 + math.exp(-1))


def test_rows_and_columns() -> None:
    frame = probq.table(quantized())
    assert frame.index.tolist() == ["0.weight", "0.input", "3.weight", "3.input"]
    assert frame.columns.tolist() == [
        *("layer", "kind", "MACs", "P(0)", "P(1)", "P(2)", "P(4)", "P(8)"),
        *("mean bits", "sd bits", "entropy", "mode", "cost share"),
    ]
    assert frame["kind"].tolist() == ["weight", "input"] * 2
    assert frame["layer"].tolist() == ["0", "0", "3", "3"]
    assert frame["MACs"].tolist() == [3 * 4 * 9, 3 * 4 * 9, 24, 24]
    assert frame["P(1)"].isna().tolist() == [True, True, True, False]


def test_probabilities_by_hand() -> None:
    q = quantized()
    with torch.no_grad():
        q.quantizer("0.weight").logits.copy_(torch.tensor([1.0, 0.0]))
    row = probq.table(q).loc["0.weight"]
    p = [1 - SIGMOID_1, SIGMOID_1 / 2, SIGMOID_1 / 2]
    assert [row["P(0)"], row["P(2)"], row["P(8)"]] == pytest.approx(p, rel=1e-6)
    assert row["mean bits"] == pytest.approx(5 * SIGMOID_1, rel=1e-6)
    assert row["sd bits"] == pytest.approx(math.sqrt(34 * SIGMOID_1 - (5 * SIGMOID_1) ** 2), rel=1e-6)
    assert row["entropy"] == pytest.approx(-sum(v * math.log2(v) for v in p), rel=1e-6)


@pytest.mark.parametrize("gates", ["tensor", "channel", "weight"])
def test_moments_are_those_of_a_gate_picked_at_random(gates: str) -> None:
    q = quantized(gates)
    row, probs, bits = probq.table(q).loc["0.weight"], by_hand(q.quantizer("0.weight").logits), np.array([0, 2, 8])
    mixture = probs.mean(0)  # law of the picked gate's width: its variance needs no law of total variance
    assert [row["P(0)"], row["P(2)"], row["P(8)"]] == pytest.approx(mixture, rel=1e-5)
    assert row["mean bits"] == pytest.approx(mixture @ bits, rel=1e-5)
    assert row["sd bits"] ** 2 == pytest.approx(mixture @ bits**2 - (mixture @ bits) ** 2, rel=1e-5)
    assert row["entropy"] == pytest.approx(-(probs * np.log2(probs)).sum(1).mean(), rel=1e-5)


def test_costs_by_enumeration() -> None:
    q = quantized()
    q.budget = probq.Budget(percent=1.5)
    frame, (values, probs) = probq.table(q), enumerated(q)
    full = 132 * 32 * 32
    assert frame.attrs["expected cost percent"] == pytest.approx(100 * values @ probs / full, rel=1e-5)
    assert frame.attrs["P(cost<=limit)"] == pytest.approx(probs[values <= 0.015 * full].sum(), rel=1e-5)
    mean = frame["mean bits"]
    of_layers = 108 * mean["0.weight"] * mean["0.input"], 24 * mean["3.weight"] * mean["3.input"]
    assert frame["cost share"]["0.weight"] == pytest.approx(100 * of_layers[0] / sum(of_layers), rel=1e-5)
    assert frame["cost share"]["3.input"] == pytest.approx(100 * of_layers[1] / sum(of_layers), rel=1e-5)


@pytest.mark.parametrize("budget", [None, probq.Budget(percent=1.0), probq.Budget(percent=20, cost=costs.storage)])
def test_mode_is_what_is_decided(budget: probq.Budget | None) -> None:
    q = quantized()
    q.budget = budget
    assert probq.table(q)["mode"].to_dict() == q.mode().widths


@pytest.mark.parametrize("gates", ["channel", "weight"])
def test_mode_of_many_gates_is_their_mean(gates: str) -> None:
    q = quantized(gates)
    q.budget = probq.Budget(percent=1.0)
    expected = {name: np.mean(bits) for name, bits in q.mode().widths.items()}
    assert probq.table(q)["mode"].to_dict() == pytest.approx(expected)


def test_attributes() -> None:
    q = quantized()
    q.temperature = 0.25
    attributes = probq.table(q).attrs
    assert (attributes["temperature"], attributes["budget"], attributes["cost"]) == (0.25, None, "bops")
    assert "P(cost<=limit)" not in attributes
    q.budget = probq.Budget(percent=20, cost=costs.storage)
    attributes = probq.table(q).attrs
    assert (attributes["budget"], attributes["cost"]) == (repr(q.budget), "storage")


def test_fixed_widths_are_certain() -> None:
    q = quantized()
    budget = probq.Budget(percent=1.0)
    fixed = q.at(q.mode(budget))
    fixed.budget = budget
    frame = probq.table(fixed)
    assert frame["mode"].to_dict() == frame["mean bits"].to_dict() == q.mode(budget).widths
    assert frame["sd bits"].tolist() == frame["entropy"].tolist() == [0.0] * 4
    assert frame.attrs["P(cost<=limit)"] == 1
    assert probability_within(fixed, probq.Budget(limit=1e-9)) == float(fixed.mode().cost() == 0)
    assert set(probq.to_arviz(fixed, draws=3).constant_data["3.weight"].values.ravel()) == {
        q.mode(budget).widths["3.weight"]
    }


def test_everything_pruned_has_no_share() -> None:
    q = probq.quantize(network(), example(), probq.Plan(weight=ladder(0)))
    frame = probq.table(q)
    assert frame["cost share"].tolist() == [0.0] * 4
    assert frame.attrs["expected cost percent"] == 0


def test_tied_weight_counts_all_its_layers() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x)))

    frame = probq.table(probq.quantize(Tied(), torch.randn(3, 4)))
    assert frame.index.tolist() == ["first.weight", "first.input", "second.input"]
    assert frame["MACs"].tolist() == [32, 16, 16]
    assert frame["layer"].tolist() == ["first, second", "first", "second"]
    assert frame["cost share"]["first.weight"] == pytest.approx(100)


def test_text_shows_every_row() -> None:
    frame = probq.table(quantized())
    lines = format_table(frame).splitlines()
    assert len(lines) == 5
    share = f"{frame['cost share']['0.input']:.1f}"
    assert " ".join(lines[2].split()) == f"0.input input 108 - - - - 1.000 8.00 0.00 0.00 8.00 {share}"


@pytest.mark.parametrize("gates", ["tensor", "channel", "weight"])
def test_draws_have_the_right_frequencies(gates: str) -> None:
    q, draws = quantized(gates), 20000
    shares, widths = width_draws.draw_widths(q, draws, seed=3)
    for name, quantizer in q.named_quantizers():
        probs = by_hand(quantizer.logits) if len(quantizer.ladder) > 1 else np.ones((1, 1))
        deviation = np.sqrt((probs * (1 - probs)).sum(0) / len(probs) ** 2 / draws)
        assert np.all(np.abs(shares[name].mean(0) - probs.mean(0)) <= 5 * deviation + 1e-12)
        assert widths[name].mean() == pytest.approx(shares[name].mean(0) @ np.array(quantizer.ladder.bits))
    assert widths["0.weight"].shape == {"tensor": (draws,), "channel": (draws, 3), "weight": (draws,)}[gates]


def test_draws_of_channels_follow_their_own_laws() -> None:
    q = quantized("channel")
    drawn = width_draws.draw_widths(q, 20000, seed=4)[1]["0.weight"]
    for channel, probs in enumerate(by_hand(q.quantizer("0.weight").logits)):
        found = [(drawn[:, channel] == b).mean() for b in (0, 2, 8)]
        assert found == pytest.approx(probs, abs=0.02)


def test_drawn_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    q = quantized("weight")
    whole = width_draws.draw_widths(q, 50, seed=5)[0]
    monkeypatch.setattr(width_draws, "MOST_NUMBERS", 150)
    parts = width_draws.draw_widths(q, 50, seed=5)[0]
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)


def test_cost_of_draws_is_that_of_an_assignment() -> None:
    q = quantized("channel")
    shares, widths = width_draws.draw_widths(q, 20, seed=6)
    drawn = width_draws.draw_costs(q, shares, costs.bops)
    for k in range(20):
        one = {name: bits[k] for name, bits in widths.items()}
        assert drawn[k] == pytest.approx(100 * costs.total(q.layers, one) / costs.full(q.layers), rel=1e-12)


def test_budget_out_of_reach() -> None:
    q = quantized(rungs=(2, 8))
    q.budget = probq.Budget(percent=0.01)
    with pytest.raises(probq.ProbqError, match="cannot be reached"):
        probq.table(q)
