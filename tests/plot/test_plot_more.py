"""Pictures of laws, channels, weights, integers and reliability: what is drawn equals the numbers, at every size."""

import itertools
from collections.abc import Iterator
from functools import cache

import arviz
import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from sklearn.calibration import calibration_curve
from test_plot import legend, quantized

import probq
from probq import ProbqError, plot, regression
from probq.evaluation.metrics.reliability import reliability_of
from probq.integer import IntegerModel, Node
from probq.plot.channels import channel_means
from probq.plot.forest import interval
from probq.plot.weights import level_shares


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    matplotlib.use("Agg")
    pyplot.close("all")
    yield
    pyplot.close("all")


BITS = (0, 1, 2, 4, 8)


@cache
def deep() -> probq.Quantized:
    """A network of 200 layers, for pictures, which change nothing."""
    return quantized(200)


@given(st.lists(st.integers(0, 60), min_size=5, max_size=5).filter(lambda counts: sum(counts) > 0))
def test_interval_is_that_of_a_sample(counts: list[int]) -> None:
    """As short as ArviZ's interval of a sample with these very shares, which leaves one draw more outside."""
    sample = np.repeat(BITS, counts).astype(float)
    low, high = interval(BITS, np.array(counts) / sum(counts), 0.94)
    inside = sum(c for b, c in zip(BITS, counts, strict=True) if low <= b <= high)
    assert inside >= 0.94 * sum(counts) - 1e-6
    if len(sample) > 2:
        reference = arviz.hdi(sample, 0.94)
        between = ((sample >= reference[0]) & (sample <= reference[1])).sum()
        if between >= 0.94 * len(sample):
            assert high - low <= reference[1] - reference[0]
    shorter = [(a, b) for a in BITS for b in BITS if 0 <= b - a < high - low]
    assert all(((sample >= a) & (sample <= b)).sum() < 0.94 * len(sample) - 1e-6 for a, b in shorter)


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize("layers", [1, 3, 200])
def test_depth_is_the_table(layers: int) -> None:
    q = deep() if layers == 200 else quantized(layers)
    ax, frame = plot.depth(q), probq.table(q)
    frame = frame[frame["kind"] == "weight"]
    heights = np.array([bar.get_height() for bar in ax.patches]).reshape(3, layers)  # type: ignore[attr-defined]
    assert heights == pytest.approx(frame[["P(0)", "P(2)", "P(8)"]].to_numpy().T)
    assert len(ax.get_xticks()) <= 24
    assert legend(ax) == ["0 bits (pruned)", "2 bits", "8 bits", "decided"]


def test_depth_hatches_widths_that_are_not_learned() -> None:
    ax = plot.depth(quantized(3), "input")
    assert [bar.get_x() + bar.get_width() / 2 for bar in ax.patches if bar.get_hatch()] == pytest.approx([0, 0, 0, 0])
    assert legend(ax)[-2:] == ["fixed", "decided"]


def test_depth_of_fixed_widths_has_the_colours_of_widths_and_no_dot() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    q = probq.quantize(net, torch.rand(4, 3), probq.uniform(2, 4))
    boxes = [picture(q).get_legend() for picture in (plot.depth, plot.widths)]
    found = [
        dict(zip([t.get_text() for t in box.get_texts()], [p.get_facecolor() for p in box.get_patches()], strict=True))
        for box in boxes
        if box is not None
    ]
    assert list(found[0]) == ["2 bits", "fixed"]
    assert found[0]["2 bits"] == found[1]["2 bits"]


def test_depth_shows_float_layers_and_refuses_other_kinds() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    q = probq.quantize(net, torch.rand(4, 3), lambda layer: probq.Plan() if layer.first else None)
    assert legend(plot.depth(q))[-2:] == ["float", "decided"]
    with pytest.raises(probq.ProbqError, match="kind is"):
        plot.depth(q, "bias")  # type: ignore[arg-type]


@pytest.mark.parametrize("gates", ["tensor", "channel"])
def test_forest_shows_mean_interval_and_decision(gates: str) -> None:
    q = quantized(2, gates)
    ax, frame = plot.forest(q), probq.table(q)
    for row, (name, values) in enumerate(frame.iterrows()):
        lines = [line for line in ax.get_lines() if np.atleast_1d(line.get_ydata()).flat[0] == row]
        bits = q.quantizer(str(name)).ladder.bits
        law = np.array([values[f"P({b})"] for b in bits])
        assert list(lines[0].get_xdata()) == list(interval(bits, law, 0.94))
        thick, (low, high) = np.asarray(lines[1].get_xdata()), interval(bits, law, 0.5)
        assert thick[0] < low  # to be seen where it holds one width only
        assert thick == pytest.approx([low, high], abs=0.2)
        assert thick[1] - high == pytest.approx(low - thick[0])
        assert float(np.asarray(lines[2].get_xdata())[0]) == pytest.approx(values["mean bits"])
    dots = np.asarray(ax.collections[0].get_offsets())[:, 0]
    assert dots == pytest.approx(frame["mode"].to_numpy())
    with pytest.raises(probq.ProbqError, match="mass"):
        plot.forest(q, mass=1.5)


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize("picture", [plot.widths, plot.forest, plot.depth, plot.cost])
def test_200_layers_fit_a_page(picture: object) -> None:
    ax: Axes = picture(deep())  # type: ignore[operator]
    assert max(ax.figure.get_size_inches()) <= 12.1  # type: ignore[union-attr]
    ax.figure.canvas.draw()  # type: ignore[union-attr]
    boxes = [label.get_window_extent() for label in ax.get_yticklabels() if label.get_text()]
    assert all(not a.overlaps(b) for a, b in itertools.pairwise(boxes))


@pytest.mark.parametrize("gates", ["channel", "weight"])
def test_channels_are_their_mean_widths(gates: str) -> None:
    q = quantized(2, gates)
    meshes = [c for c in plot.channels(q).collections if isinstance(c, QuadMesh)]
    for mesh, name in zip(meshes, ("0.weight", "2.weight"), strict=True):
        quantizer = q.quantizer(name)
        probs = quantizer.probs().detach().double().reshape(4, -1, 3)
        expected = (probs * torch.tensor([0.0, 2.0, 8.0])).sum(-1).mean(1)
        assert np.asarray(mesh.get_array()).reshape(-1) == pytest.approx(expected.numpy())
    with pytest.raises(probq.ProbqError, match="gates="):
        plot.channels(quantized())
    assert channel_means(quantized(), "0.weight").shape == (1,)


def test_weights_are_counted_on_their_levels() -> None:
    q = quantized()
    q.budget = probq.Budget(percent=5)
    a, found = q.mode(), level_shares(q, "0.weight")
    assert found.bits == a.widths["0.weight"]
    codes = np.asarray(a.codes["0.weight"]).reshape(-1)
    assert found.decided == pytest.approx(np.bincount(codes, minlength=len(found.levels)) / codes.size)
    assert found.expected.sum() == pytest.approx(1)
    torch.manual_seed(0)
    draws = np.concatenate([np.asarray(s.codes["0.weight"]).reshape(-1) for s in q.at(a).sample(400)])
    drawn = np.bincount(draws, minlength=len(found.levels)) / draws.size
    assert np.abs(drawn - found.expected).max() < 0.03
    assert f"{found.bits} bits" in plot.weights(q, "0.weight").get_title()


@pytest.mark.parametrize("gates", ["channel", "weight"])
def test_weights_of_the_most_common_width(gates: str) -> None:
    q = quantized(1, gates)
    found = level_shares(q, "0.weight")
    decided = np.broadcast_to(np.asarray(q.mode().widths["0.weight"]).reshape(q.quantizer("0.weight").gates), (4, 4))
    assert found.part == pytest.approx((decided == found.bits).mean())
    assert found.expected.sum() == pytest.approx(1)
    plot.weights(q).figure.canvas.draw()  # type: ignore[union-attr]


def test_one_far_weight_does_not_shrink_the_picture() -> None:
    torch.manual_seed(0)
    q = probq.quantize(torch.nn.Sequential(torch.nn.Linear(60, 60)), torch.rand(8, 60), probq.uniform(4, 8))
    with torch.no_grad():
        q.net.get_parameter("0.weight")[0, 0] = 100.0
    found, ax = level_shares(q, "0.weight"), plot.weights(q, "0.weight")
    assert found.values.max() > 100
    assert ax.get_xlim()[1] < 20
    values, edges, _ = ax.patches[0].get_data()
    seen = (found.values >= edges[0]) & (found.values <= edges[-1])
    assert (values * np.diff(edges)).sum() / np.diff(found.levels).mean() == pytest.approx(seen.mean())


def test_weights_that_are_not_there(tmp_path: object) -> None:
    with pytest.raises(probq.ProbqError, match="no quantized weight"):
        plot.weights(quantized(), "fc.weight")


def test_nan_is_named() -> None:
    q = quantized()
    with torch.no_grad():
        q.net.get_parameter("2.weight")[0, 0] = float("nan")
    with pytest.raises(probq.ProbqError, match=r"2\.weight holds NaN"):
        plot.weights(q, "2.weight")
    with torch.no_grad():
        q.quantizer("0.weight").logits[0] = float("nan")
    for picture in (plot.widths, plot.forest, plot.depth, plot.cost):
        with pytest.raises(probq.ProbqError, match=r"0\.weight hold NaN"):
            picture(q)  # type: ignore[operator]


def test_integers_show_what_the_file_says() -> None:
    q = quantized(3)
    model = probq.lower(q)
    lines = {line.get_label(): line for line in plot.integers(model).get_lines()}
    widths = q.mode().widths
    assert list(lines["input"].get_ydata()) == [widths[f"{k}.input"] for k in (0, 2, 4)]
    assert list(lines["weight"].get_ydata()) == [widths[f"{k}.weight"] for k in (0, 2, 4)]
    image = Node("x", "input", attributes={"shape": [2], "scale": 0.5, "lo": 0, "hi": 15})
    with pytest.raises(probq.ProbqError, match="no linear"):
        plot.integers(IntegerModel([image], "x", 1.0))


def test_reliability_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.beta(4, 1.5, 500)
    right = generator.random(500) < confidence**1.5
    found = reliability_of(confidence, right)
    accuracy, mean = calibration_curve(right, confidence, n_bins=10)
    full = found.counts > 0
    assert found.accuracy[full] == pytest.approx(accuracy)
    assert found.confidence[full] == pytest.approx(mean)
    by_hand = sum(
        abs(right[m].mean() - confidence[m].mean()) * m.mean()
        for k in range(10)
        if (m := (confidence > k / 10) & (confidence <= (k + 1) / 10)).any()
    )
    assert found.error == pytest.approx(by_hand)
    box = plot.reliability(confidence, right).get_legend()
    assert box is not None
    box.figure.canvas.draw()  # type: ignore[union-attr]
    assert not box.get_window_extent().overlaps(box.axes.get_window_extent())  # covers no bin
    assert f"{100 * by_hand:.2g} %" in plot.reliability(confidence, right).get_title()
    probabilities = np.stack([confidence, 1 - confidence], 1)
    classes = np.where(right, probabilities.argmax(1), 1 - probabilities.argmax(1))
    same = reliability_of(torch.tensor(probabilities), torch.tensor(classes))
    assert same.means == pytest.approx((right.mean(), probabilities.max(1).mean()))


@pytest.mark.parametrize(
    ("predictions", "targets", "message"),
    [
        ([0.5, float("nan")], [1, 0], "predictions hold nan at index 1"),
        ([0.5, 0.5], [1, float("inf")], "targets hold inf at index 1"),
        ([1.5], [1], "between 0 and 1"),
        ([0.5], [2], "0 or 1"),
        ([], [], "at least one"),
        ([0.5, 0.5], [1], "shapes"),
        ([[0.5, 0.4]], [0], "sum to 1"),
        ([[0.5, 0.5]], [2], "from 0 to 1"),
        ("abc", [0], "array of numbers"),
    ],
)
def test_reliability_of_what_is_none(predictions: object, targets: object, message: str) -> None:
    with pytest.raises(probq.ProbqError, match=message):
        plot.reliability(predictions, targets)


def test_coverage_draws_every_share_and_band() -> None:
    generator = np.random.default_rng(1)
    y = generator.normal(size=50)
    found = {f"sd {sd}": regression.coverage(np.zeros((1, 50)), sd**2, y) for sd in (0.5, 1.0)}
    ax = plot.coverage(found)
    for line, band, one in zip(ax.lines[1:], ax.collections, found.values(), strict=True):
        np.testing.assert_allclose(line.get_xydata(), 100 * np.stack([one.levels, one.share], 1))
        box = band.get_datalim(ax.transData)
        assert (box.ymin, box.ymax) == pytest.approx((100 * one.low.min(), 100 * one.high.max()))
    assert legend(ax) == ["honest", "sd 0.5", "sd 1.0"]
    assert "50 targets" in ax.get_title()
    assert plot.coverage(found["sd 1.0"], ax) is ax


@pytest.mark.parametrize("found", [{}, None, {"mean": 0.5}, (0.5, 0.9)])
def test_coverage_of_what_is_none(found: object) -> None:
    with pytest.raises(ProbqError, match=r"probq.regression.coverage"):
        plot.coverage(found)  # type: ignore[arg-type]


def test_names_that_look_like_formulas() -> None:
    net = torch.nn.Sequential()
    net.add_module(r"$\frac{$", torch.nn.Linear(2, 2))
    q = probq.quantize(net, torch.rand(3, 2))
    for picture in (plot.widths, plot.forest, plot.depth):
        assert "<svg" in plot.svg(picture(q))  # type: ignore[operator]


def test_svg_is_always_the_same() -> None:
    texts = {plot.svg(plot.cost(quantized(), probq.Budget(percent=1))) for _ in range(2)}
    assert len(texts) == 1
    assert pyplot.get_fignums() == []
