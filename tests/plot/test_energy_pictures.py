"""The heat maps of an energy: every cell is its number, what is below 0 stands out, and pairs are the largest ones."""

import itertools
from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

from probq import Energy, ProbqError, plot
from probq.plot.common.style import DARK, LOSS

NAMES, WIDTHS = ("a.weight", "b.weight", "a.input"), ((1, 2, 4, 8), (2, 8), (4, 8))
UNARY = ([2.5, 0.04, -0.0003, 0.0], [123.4, 0.0], [-0.5, 0.0])


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    matplotlib.use("Agg")
    pyplot.close("all")
    yield
    pyplot.close("all")


def pairwise(size: int, widths: Any = WIDTHS) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(size, size))
    values, ends = values + values.T, np.cumsum([0, *map(len, widths)])
    for a, b in itertools.pairwise(ends):
        values[a:b, a:b] = 0
    return values


def energy(**changes: Any) -> Energy:
    given = {"names": NAMES, "widths": WIDTHS, "unary": UNARY, "label": "by hand"}
    return Energy(**{**given, **changes})


def cells(ax: Axes) -> np.ndarray:
    values: np.ndarray = np.ma.filled(ax.collections[0].get_array(), np.nan)
    return values


def frames(ax: Axes, colour: str = LOSS) -> set[tuple[int, int]]:
    """Row and column of each cell in a frame of a colour."""
    framed = [
        patch for patch in ax.patches if isinstance(patch, Rectangle) and patch.get_edgecolor() == to_rgba(colour)
    ]
    middles = [np.add(patch.get_xy(), (patch.get_width() / 2, patch.get_height() / 2)) for patch in framed]
    return {(round(y), round(x)) for x, y in middles}


def test_cells_are_the_numbers() -> None:
    ax = plot.energy(energy())
    np.testing.assert_array_equal(cells(ax), energy().to_frame().to_numpy())
    texts = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in ax.texts}
    assert texts == {
        (0, 0): "2.5", (0, 1): "0.04", (0, 2): "−3e-4", (0, 3): "0", (1, 1): "123", (1, 3): "0", (2, 2): "−0.5",
        (2, 3): "0",
    }  # fmt: skip
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "4", "8"]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(NAMES)
    assert ax.yaxis_inverted()
    assert "by hand" in ax.get_title()
    assert [one.get_xlabel() for one in ax.figure.axes[1:]] == ["nats for one example"]


def test_what_is_below_zero_is_framed_and_blue() -> None:
    ax = plot.energy(energy())
    assert frames(ax) == {(0, 2), (2, 2)}
    assert ax.get_xlabel() == "width in bits; blue frame: below 0"
    mesh = ax.collections[0]
    for value in (0.5, 5.0, 100.0):
        (red, _, blue, _), (minus_red, _, minus_blue, _) = mesh.to_rgba([value, -value])
        assert red > blue
        assert minus_blue > minus_red
    zero = mesh.to_rgba([0.0])[0]
    assert np.ptp(zero[:3]) < 0.02  # grey in the middle
    assert not frames(plot.energy(energy(unary=([2.5, 0.04, 0.0003, 0.0], *UNARY[1:2], [0.5, 0.0]))))


def test_chosen_widths_have_a_dark_frame() -> None:
    chosen = {"a.weight": 2, "b.weight": np.array([[8], [8]]), "a.input": 4, "other": 3}
    ax = plot.energy(energy(), chosen)
    assert frames(ax, DARK) == {(0, 1), (1, 3), (2, 2)}
    assert frames(ax) == {(0, 2), (2, 2)}
    assert ax.get_xlabel() == "width in bits; dark frame: chosen; blue frame: below 0"
    with pytest.raises(ProbqError, match="needs one width"):
        plot.energy(energy(), {"a.weight": 3})


def test_colours_grow_with_the_size_of_the_number() -> None:
    mesh = plot.energy(energy()).collections[0]
    for sign in (1, -1):
        light = mesh.to_rgba(sign * np.geomspace(1e-2, 123.4, 12))[:, :3] @ (0.2126, 0.7152, 0.0722)
        assert (np.diff(light) < 0).all()


def test_pairs_are_the_largest_of_their_block() -> None:
    own = energy(pairwise=pairwise(8))
    ax = plot.energy(own)
    beside = ax.figure.axes[1]
    for (i, one), (j, other) in itertools.product(enumerate(NAMES), repeat=2):
        value = cells(beside)[i, j]
        if i == j:
            assert np.isnan(value)
            continue
        block = [own.block(one, other)[k, m] for k in range(len(WIDTHS[i])) for m in range(len(WIDTHS[j]))]
        assert value == max(block, key=abs)
    assert [label.get_text() for label in beside.get_xticklabels()] == list(NAMES)
    assert not any(label.get_visible() and label.get_text() for label in beside.get_yticklabels(which="both"))
    norm = beside.collections[0].norm
    assert norm(0.0) == pytest.approx(0.5)
    assert (norm.vmax, norm.vmin) == (np.nanmax(abs(cells(beside))), -np.nanmax(abs(cells(beside))))


def test_both_are_drawn_where_it_is_said() -> None:
    own = energy(pairwise=pairwise(8))
    _, axes = pyplot.subplots(1, 2)
    assert plot.energy(own, ax=axes[0], pairs=axes[1]) is axes[0]
    assert [label.get_text() for label in axes[1].get_yticklabels()] == list(NAMES)
    _, alone = pyplot.subplots()
    assert plot.energy(own, ax=alone) is alone
    assert len(alone.figure.axes) == 2  # its colour bar
    with pytest.raises(ProbqError, match="no pairs"):
        plot.energy(energy(), pairs=alone)
    with pytest.raises(ProbqError, match="takes an Energy"):
        plot.energy({"a": 1})  # type: ignore[arg-type]
    for wrong in (object(), 8):
        with pytest.raises(ProbqError, match=r"such as Assignment.widths, not"):
            plot.energy(energy(), wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 30, 130])
@pytest.mark.parametrize("coupled", [False, True])
def test_every_size_is_drawn(count: int, coupled: bool) -> None:
    widths = ((2, 8),) * count
    names = tuple(f"layer{k}.weight$" for k in range(count))
    pairs = pairwise(2 * count, widths) if coupled else None
    ax = plot.energy(Energy(names, widths, ((0.0, 0.0),) * count, pairs))  # nothing adds anything
    assert len(ax.texts) == (0 if count > 60 else 2 * count)
    assert len(ax.get_yticklabels()) <= 60
    assert (plot.svg(ax).count("<svg")) == 1


def test_numbers_can_be_read_on_their_colour() -> None:
    ax = plot.energy(energy())
    for text in ax.texts:
        x, y = (round(p) for p in text.get_position())
        pair = [to_rgba(text.get_color()), ax.collections[0].to_rgba([cells(ax)[y, x]])[0]]
        light = [np.dot(np.asarray(c[:3]) ** 2.2, (0.2126, 0.7152, 0.0722)) for c in pair]
        assert (max(light) + 0.05) / (min(light) + 0.05) > 3.5
