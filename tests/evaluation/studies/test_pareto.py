"""Fits under several budgets: each kept, resumed without change, and the dominated ones named."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas
import pytest
import torch
from matplotlib import pyplot
from torch import nn

import probq
from probq import Budget, Plan, ProbqError
from probq import cost as costs
from probq.codebooks import ladder
from probq.evaluation.studies.pareto import is_dominated
from probq.network.tracing.layer import Layer
from probq.testing import width_states

XS = torch.rand(48, 4, generator=torch.Generator().manual_seed(1))
YS = (XS.sum(1) > 2).long()
PAIRS = [(XS[k : k + 16], YS[k : k + 16]) for k in range(0, 48, 16)]
BUDGETS = [Budget(percent=1.0), Budget(percent=3.0), Budget(percent=1.6)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).eval()


def fits(budgets: Any = BUDGETS, **options: Any) -> probq.Pareto:
    settings = {"plan": Plan(weight=ladder(1, 2, 4)), "epochs": 2, "evaluations": 4, "validation": PAIRS}
    return probq.pareto(network(), XS, PAIRS, budgets, seed=0, progress=False, **{**settings, **options})


def same(a: probq.Pareto, b: probq.Pareto) -> bool:
    states = [
        x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
        for x, y in zip(*([q.state_dict() for q in p.networks] for p in (a, b)), strict=True)
    ]
    return all(states) and a.table.equals(b.table)


@pytest.mark.parametrize("warm", [True, False])
def test_every_budget_is_kept_and_the_table_is_what_the_networks_say(warm: bool) -> None:
    result = fits(warm=warm)
    assert result.table["budget"].tolist() == pytest.approx([3.0, 1.6, 1.0])
    for (_, row), q, budget in zip(result.table.iterrows(), result.networks, sorted(BUDGETS, key=_down), strict=True):
        assert q.budget == budget
        a = q.mode(budget)
        assert row["cost"] == pytest.approx(a.percent())
        assert row["cost"] <= row["budget"]
        assert row["widths"] == a.widths
        states = list(width_states(q))
        percent = [a_cost(q, rungs) for rungs, _ in states]
        probs = np.array([p for _, p in states])
        assert row["expected cost"] == pytest.approx(float(probs @ percent), rel=1e-5)
        share = sum(p for p, c in zip(probs, percent, strict=True) if row["low"] - 1e-9 <= c <= row["high"] + 1e-9)
        assert share > 0.92
        assert row["P(cost<=limit)"] == pytest.approx(
            sum(p for p, c in zip(probs, percent, strict=True) if c <= row["budget"]), abs=1e-5
        )
        output = q.at(a)(XS)
        assert row["loss"] == pytest.approx(float(nn.functional.cross_entropy(output, YS)), rel=1e-4)
        assert row["accuracy"] == pytest.approx(float((output.argmax(1) == YS).double().mean()))


def _down(budget: Budget) -> float:
    return -float(budget.percent or 0)


def a_cost(q: probq.Quantized, rungs: dict[str, int]) -> float:
    bits = {name: q.quantizer(name).ladder.bits[k] for name, k in rungs.items()}
    total = sum(m.macs * bits[m.weight] * bits[m.input or ""] for m in q.layers)
    return 100 * total / sum(1024 * m.macs for m in q.layers)


def test_cold_fits_are_those_of_each_budget_alone_and_warm_ones_continue() -> None:
    cold, warm = fits(warm=False), fits()
    last = cold.table.iloc[2:].reset_index(drop=True).assign(dominated=False)  # nothing dominates what is alone
    assert same(fits(BUDGETS[:1], warm=False), probq.Pareto(last, cold.networks[2:]))
    first, second = warm.networks[:2]
    probq.fit(first, PAIRS, BUDGETS[2], 2, seed=0, progress=False, validation=PAIRS, evaluations=4)
    states = first.state_dict(), second.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))
    assert not torch.equal(cold.networks[1].net[0].weight, second.net[0].weight)


def test_an_interrupted_run_continues_where_it_stopped(tmp_path: Path) -> None:
    class Stopped(list[Any]):
        """Interrupted as soon as the first posterior is saved."""

        def __iter__(self) -> Any:
            for pair in list.__iter__(self):
                if list((tmp_path / "fits").glob("*.safetensors")):
                    raise KeyboardInterrupt
                yield pair

    with pytest.raises(KeyboardInterrupt):
        probq.pareto(
            network(), XS, Stopped(PAIRS), BUDGETS, 2, plan=Plan(weight=ladder(1, 2, 4)), seed=0, progress=False,
            validation=PAIRS, evaluations=4, folder=tmp_path / "fits",
        )  # fmt: skip
    kept = [path.name for path in (tmp_path / "fits").iterdir() if path.is_file()]
    assert kept == ["budget-3.0-percent-bops.safetensors"]
    before = (tmp_path / "fits" / kept[0]).read_bytes()
    result = fits(folder=tmp_path / "fits")
    assert (tmp_path / "fits" / kept[0]).read_bytes() == before
    assert same(result, fits())
    assert same(fits(folder=tmp_path / "fits", epochs=100), result)  # all loaded
    assert len(list((tmp_path / "fits").iterdir())) == 3
    with pytest.raises(ProbqError, match="another plan or budget"):
        fits(folder=tmp_path / "fits", plan=Plan(weight=ladder(1, 2)))


def memory(layer: Layer, weight_bits: Any, input_bits: Any) -> Any:
    """A cost of the user's own, which a file cannot name."""
    return layer.weights * weight_bits + input_bits


@pytest.mark.parametrize("cost", [costs.storage, memory])
def test_what_a_file_cannot_hold_is_given_again(cost: costs.Cost, tmp_path: Path) -> None:
    budgets = [Budget(percent=10, cost=cost)]
    options = {"folder": tmp_path, "likelihood": lambda z: torch.distributions.Categorical(logits=z)}
    first, again = fits(budgets, **options), fits(budgets, **options)
    assert again.table.equals(first.table)
    assert again.networks[0].budget == budgets[0]
    assert again.table.attrs["cost"] == cost.__name__
    assert again.networks[0].mode(budgets[0]) == first.networks[0].mode(budgets[0])


def test_dominated_is_what_the_definition_says() -> None:
    generator = np.random.default_rng(0)
    cost, loss = generator.integers(0, 6, 40), generator.integers(0, 6, 40)
    points = list(zip(cost, loss, strict=True))
    by_hand = [any(a <= c and b <= d and (a, b) != (c, d) for a, b in points) for c, d in points]
    assert is_dominated(cost, loss).tolist() == by_hand
    assert any(by_hand) and not all(by_hand)  # noqa: PT018


def test_without_validation_there_is_no_accuracy_and_nothing_to_draw() -> None:
    result = fits(BUDGETS[:1], validation=None)
    assert not {"loss", "accuracy", "dominated"} & set(result.table)
    with pytest.raises(ProbqError, match=r"give probq\.pareto validation batches"):
        result.plot()


@pytest.mark.parametrize("quality", ["accuracy", "loss"])
def test_the_picture_shows_the_table(quality: str) -> None:
    matplotlib.use("Agg")
    table = pandas.DataFrame(
        {
            "cost": [3.0, 2.0, 1.0],
            "expected cost": [2.9, 2.1, 1.2],
            "low": [2.0, 1.5, 0.5],
            "high": [4.0, 2.5, 1.5],
            "loss": [0.1, 0.3, 0.2],
            "dominated": [False, True, False],
        }
    )
    if quality == "accuracy":
        table["accuracy"] = [0.9, 0.7, 0.8]
    y = {"accuracy": [90, 70, 80], "loss": [0.1, 0.3, 0.2]}[quality]
    ax = probq.Pareto(table, ()).plot()
    lines = {line.get_label(): np.transpose(line.get_data()).tolist() for line in ax.lines}
    assert lines["decided"] == [[1.0, pytest.approx(y[2])], [3.0, pytest.approx(y[0])]]
    assert lines["decided, dominated"] == [[2.0, pytest.approx(y[1])]]
    bars = [segment for collection in ax.collections for segment in collection.get_segments()]
    assert [bar[:, 0].tolist() for bar in bars] == table[["low", "high"]].to_numpy().tolist()
    assert ax.get_ylabel().startswith(quality)
    pyplot.close("all")


def test_mistakes_are_refused_before_anything_is_fitted(tmp_path: Path) -> None:
    for wrong, part in (
        ([], "at least one"),
        ([0.5], "at least one"),
        (Budget(percent=1), "at least one"),
        ([Budget(percent=1), Budget(percent=1, cost=costs.storage)], "different costs"),
        ([Budget(percent=1), Budget(percent=1)], "are the same"),
        ([Budget(percent=1), Budget(limit=1)], "cannot be reached"),
    ):
        with pytest.raises(ProbqError, match=part):
            fits(wrong)
    (tmp_path / "file").write_text("")
    with pytest.raises(ProbqError, match="cannot make the folder"):
        fits(folder=tmp_path / "file")
    with pytest.raises(ProbqError, match="fit has no option 'wram'"):
        fits(wram=True)
