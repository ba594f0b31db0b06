"""Pictures: what is drawn equals the numbers, at every size, and no figure is left open."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from torch import nn

import probq
from probq import plot
from probq.codebooks import ladder
from probq.decisions.within_budget import probability_within
from probq.training.svi.history import BudgetState, History, Step


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    matplotlib.use("Agg")
    pyplot.close("all")
    yield
    pyplot.close("all")


def quantized(layers: int = 2, gates: str = "tensor", seed: int = 0) -> probq.Quantized:
    torch.manual_seed(seed)
    net = nn.Sequential(*[m for _ in range(layers) for m in (nn.Linear(4, 4), nn.ReLU())])
    plan = probq.Plan(weight=ladder(0, 2, 8), input=ladder(1, 2, 4, 8, signed=False), gates=gates)
    q = probq.quantize(net, torch.rand(8, 4), plan)
    with torch.no_grad():
        for _, quantizer in q.named_quantizers():
            quantizer.logits.normal_()
    return q


def bars(ax: Axes) -> dict[int, list[Any]]:
    """Full-height bars of each row that are wider than nothing, from left to right."""
    found: dict[int, list[Any]] = {}
    for bar in ax.patches:
        if bar.get_height() > 0.5 and bar.get_width() > 0:
            found.setdefault(round(bar.get_y() + bar.get_height() / 2), []).append(bar)
    return {row: sorted(of_row, key=lambda bar: bar.get_x()) for row, of_row in found.items()}


def dots(ax: Axes) -> dict[int, float]:
    points = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections if len(c.get_offsets())])
    assert not len(points) or len(ax.collections[0].get_offsets()) * 2 == len(points)  # a white dot and its core
    return {round(y): x for x, y in points}


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize("layers", [1, 2, 30])
def test_bars_are_the_table(layers: int) -> None:
    q = quantized(layers)
    ax, frame = plot.widths(q), probq.table(q)
    assert len(bars(ax)) == len(frame) == 2 * layers
    for row, (_, values) in enumerate(frame.iterrows()):
        shares = [v for b in (0, 1, 2, 4, 8) if (v := values.get(f"P({b})", 0)) > 0]
        assert [bar.get_width() for bar in bars(ax)[row]] == pytest.approx(shares)
        assert sum(bar.get_width() for bar in bars(ax)[row]) == pytest.approx(1)
    assert [label.get_text() for label in ax.get_yticklabels()] == frame.index.tolist()
    assert ax.yaxis_inverted()


def test_dot_lies_in_the_decided_bar() -> None:
    q = quantized()
    q.budget = probq.Budget(percent=0.3)
    ax, frame, decided = plot.widths(q), probq.table(q), q.mode().widths
    assert set(dots(ax)) == {0, 2, 3}  # the network's input has one width
    for row, x in dots(ax).items():
        name = frame.index[row]
        left = sum(frame.loc[name, f"P({b})"] for b in q.quantizer(name).ladder.bits if b < decided[name])
        assert left <= x + 0.013
        assert x - 0.013 <= left + frame.loc[name, f"P({decided[name]})"]


def test_dot_has_the_colour_of_its_width() -> None:
    """To be told where the decided width's part of the bar is thinner than the dot."""
    q = quantized()
    with torch.no_grad():
        q.quantizer("0.weight").logits.fill_(-12.0)
    decided = q.mode().widths
    for ax, names in ((plot.widths(q), ("0.weight", "2.weight", "2.input")), (plot.depth(q), ("0.weight", "2.weight"))):
        box = ax.get_legend()
        assert box is not None
        colours = {
            text.get_text(): patch.get_facecolor()
            for text, patch in zip(box.get_texts(), box.get_patches(), strict=False)
        }
        cores = [tuple(colour) for colour in np.asarray(ax.collections[1].get_facecolors())]
        words = {0: "0 bits (pruned)", 1: "1 bit"}
        assert cores == [to_rgba(colours[words.get(w, f"{w} bits")]) for w in (decided[name] for name in names)]


def test_fixed_is_hatched() -> None:
    q = quantized()
    hatched = {row: {bar.get_hatch() for bar in of_row} for row, of_row in bars(plot.widths(q)).items()}
    assert hatched == {0: {""}, 1: {"////"}, 2: {""}, 3: {""}}
    ax = plot.widths(q.at(q.mode()))
    assert {bar.get_hatch() for of_row in bars(ax).values() for bar in of_row} == {"////"}
    assert legend(ax)[-1] == "fixed"
    assert "decided" not in legend(ax)


def legend(ax: Axes) -> list[str]:
    box = ax.get_legend()
    assert box is not None
    return [text.get_text() for text in box.get_texts()]


def test_strip_of_channels_is_what_they_decide() -> None:
    q = quantized(gates="channel")
    q.budget = probq.Budget(percent=0.8)
    ax, decided = plot.widths(q), q.mode().widths["0.weight"]
    strip = [b for b in ax.patches if b.get_height() < 0.5 and b.get_width() > 0 and round(b.get_y()) == 0]
    assert [b.get_width() for b in strip] == pytest.approx([np.mean(decided == b) for b in np.unique(decided)])
    assert legend(ax)[-2].startswith("decided, share")


def test_colours_are_ordered_by_lightness() -> None:
    """Told apart without seeing colours: more bits are darker, each step by a visible amount."""
    box = plot.widths(quantized()).get_legend()
    assert box is not None
    light = [np.dot(to_rgba(p.get_facecolor())[:3], (0.2126, 0.7152, 0.0722)) for p in box.get_patches()[:5]]
    assert min(-np.diff(light)) > 0.05


def test_legend_lies_outside() -> None:
    for ax in (plot.widths(quantized()), plot.cost(quantized())):
        ax.figure.canvas.draw()  # type: ignore[union-attr]
        box = ax.get_legend()
        assert box is not None
        assert not box.get_window_extent().overlaps(ax.get_window_extent())


def test_cost_shows_limit_mode_and_probability() -> None:
    q, budget = quantized(), probq.Budget(percent=0.4)
    ax = plot.cost(q, budget)
    lines = {str(line.get_label()): line for line in ax.get_lines()}
    decided = q.mode(budget).percent()
    assert np.allclose(lines["limit 0.4 %"].get_xdata(), 0.4)
    assert lines[f"decided {decided:.3g} %"].get_xdata()[0] == pytest.approx(decided)  # type: ignore[index]
    q.calibrated = True
    drawn = probq.to_arviz(q, 10000).posterior["cost"].values
    shown = float(ax.get_title().split("=")[1])
    assert shown == pytest.approx((drawn <= 0.4).mean(), abs=0.03)
    assert "%" in ax.get_xlabel()


def test_cost_uses_the_budget_of_the_fit() -> None:
    q = quantized()
    assert "P(" not in plot.cost(q).get_title()
    q.budget = probq.Budget(percent=20, cost=probq.cost.storage)
    ax = plot.cost(q)
    assert ax.get_title().endswith(f"P(cost ≤ limit) = {probability_within(q, q.budget):.3g}")
    assert "storage" in ax.get_xlabel()


@pytest.mark.parametrize("gates", ["tensor", "channel", "weight"])
def test_cost_of_every_kind_of_gate(gates: str) -> None:
    values = plot.cost(quantized(gates=gates), probq.Budget(percent=1)).patches[0].get_data().values
    assert 0.99 <= values.sum() <= 1.0001


def test_cost_of_one_value() -> None:
    q = quantized()
    ax = plot.cost(q.at(q.mode()))
    low, high = ax.get_xlim()
    assert low < q.mode().percent() < high
    values, edges, _ = ax.patches[0].get_data()
    full = int(np.argmax(values))
    assert edges[full : full + 2].mean() == pytest.approx(q.mode().percent())  # the bar stands on its value


def steps(count: int, tune: int, limit: float | None = 0.5, percent: float = 2.0) -> History:
    phases = ["search"] * (count - tune) + ["tune"] * tune
    rows = [Step(k, 0, phase, 1 / (k + 1), 0.9 / (k + 1), 0.1, percent, limit, 0.0) for k, phase in enumerate(phases)]
    return History(rows)


def test_history_draws_every_step() -> None:
    ax = plot.history(steps(40, 10))
    right = next(other for other in ax.figure.axes if other is not ax)
    assert ax.get_lines()[0].get_ydata().tolist() == pytest.approx([1 / (k + 1) for k in range(40)])  # type: ignore[union-attr]
    assert right.get_yscale() == "log"
    assert [line.get_ydata()[0] for line in right.get_lines()] == [2.0, 0.5]  # type: ignore[index]
    span = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert (span.x0, span.x1) == pytest.approx((29.5, 39.5))
    assert "nats" in ax.get_ylabel()
    assert "%" in right.get_ylabel()
    assert "limit in force" in legend(ax)


def test_history_of_several_budgets_draws_each() -> None:
    rows = [replace(step, further=(BudgetState(8.0, 4.0, 0.1),)) for step in steps(40, 10).steps]
    ax = plot.history(History(rows))
    right = next(other for other in ax.figure.axes if other is not ax)
    assert [line.get_ydata()[0] for line in right.get_lines()] == [2.0, 0.5, 8.0, 4.0]  # type: ignore[index]
    assert [text for text in legend(ax) if text.endswith("2")] == ["E[cost] 2", "limit in force 2"]


def test_history_draws_validation_at_the_end_of_epochs() -> None:
    rows = [replace(step, epoch=step.step // 10) for step in steps(40, 10).steps]
    ax = plot.history(History(rows, validation=[{"epoch": 0, "loss": 3.0}, {"epoch": 3, "loss": 0.5}]))
    line = next(line for line in ax.get_lines() if "validation" in str(line.get_label()))
    assert list(np.asarray(line.get_xdata())) == [9, 39]
    assert list(np.asarray(line.get_ydata())) == [3.0, 0.5]
    assert ax.get_ylim()[1] > 3
    assert "validation loss at the mode" in legend(ax)


def test_history_method_is_the_function() -> None:
    assert legend(steps(40, 10).plot()) == legend(plot.history(steps(40, 10)))


@pytest.mark.parametrize("history", [steps(1, 0), steps(3, 3), steps(30, 0, limit=None), steps(30, 5, percent=0.0)])
def test_history_of_every_shape(history: History) -> None:
    plot.history(history).figure.canvas.draw()  # type: ignore[union-attr]


def test_history_without_steps() -> None:
    with pytest.raises(probq.ProbqError, match="no step"):
        plot.history(History())


def test_given_axes_are_used() -> None:
    figure, (a, b, c) = pyplot.subplots(1, 3)
    q = quantized()
    assert plot.widths(q, ax=a) is a
    assert plot.cost(q, ax=b) is b
    assert plot.history(steps(9, 3), ax=c) is c
    assert pyplot.get_fignums() == [figure.number]  # type: ignore[attr-defined]


def test_saved_whole_and_closed(tmp_path: Path) -> None:
    plot.save(plot.widths(quantized()), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    for name, message in (("a.nonsense", "not supported"), ("none/a.png", "cannot write")):
        with pytest.raises(probq.ProbqError, match=message):
            plot.save(plot.widths(quantized()), tmp_path / name)
    assert pyplot.get_fignums() == []
