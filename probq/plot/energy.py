"""Heat maps show an energy: what each width of each quantizer costs, and how pairs of quantizers couple."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap, SymLogNorm
from matplotlib.patches import Rectangle

from probq.plot.common.style import (
    CROWDED,
    DARK,
    LOSS,
    PACKED,
    WIDTH,
    height_of,
    name_rows,
    new_axes,
    shortened,
    title,
)
from probq.priors.energies.energy import Energy
from probq.utils.errors import ProbqError

SIGNED = ("#10305f", LOSS, "#9fb9dd", "#f1f1f1", "#edb283", "#c05a00", "#6b2f00")  # blue below 0, orange above
LIGHTNESS = (0.2126, 0.7152, 0.0722)
MOST_COLUMNS, MOST_CELLS = 40, 4096  # columns of pairs with names, and cells that a page holds as vectors
ROOMY = 8  # columns of pairs up to which each cell holds its number


def energy(
    energy: Energy, widths: Mapping[str, Any] | None = None, ax: Axes | None = None, pairs: Axes | None = None
) -> Axes:
    """Plot what each width of each quantizer adds to the loss, and beside it how pairs of quantizers couple.

    A row for each quantizer, a column for each width. Cells are empty where a ladder lacks the width, and have a blue
    frame where the energy is below 0; a dark one marks widths that were chosen. The second picture shows, for each pair
    of quantizers, the energy of largest size among all pairs of their widths: above 0, both together cost more than the
    sum of each. Colours are linear near 0 and logarithmic further out.

    Args:
        energy: from a criterion.
        widths: the widths that were chosen, such as `Assignment.widths`; marked.
        ax: where to draw; by default a new figure, with a second picture if the energy has pairs.
        pairs: where to draw pairs; by default beside, in a new figure.

    Raises:
        ProbqError: if it is no energy, it does not know the widths, or `pairs` is given for one without pairs.
    """
    if not isinstance(energy, Energy):
        raise ProbqError(f"plot.energy takes an Energy, as probq.criteria.loss gives, not {type(energy).__name__}")
    if pairs is not None and energy.pairwise is None:
        raise ProbqError("this energy has no pairs; leave out pairs, or measure with probq.criteria.clado")
    if ax is None and pairs is None and energy.pairwise is not None:
        ax, pairs = _two_axes(len(energy.names))
    frame, chosen = energy.to_frame(), [] if widths is None else _cells(energy, widths)
    ax = new_axes(ax, height_of(len(frame)) + 0.5)
    name_rows(ax, frame.index)
    _map(ax, frame.to_numpy(), len(frame) <= PACKED, energy.unit)
    _frame(ax, np.argwhere(frame.to_numpy() < 0), LOSS, 0.92)
    _frame(ax, chosen, DARK, 1.0)
    ax.set_xticks(range(len(frame.columns)), [str(b) for b in frame.columns])
    frames = {"; dark frame: chosen": chosen, "; blue frame: below 0": energy.negative}
    ax.set_xlabel("width in bits" + "".join(text for text, some in frames.items() if some))
    title(ax, f"Energy of each width: {shortened(energy.label)}")
    if pairs is not None:
        _pairs(pairs, energy)
    return ax


def couplings(energy: Energy) -> np.ndarray:
    """Return for each pair of quantizers the pairwise energy of largest size, NaN for a quantizer with itself."""
    found = np.full((len(energy.names), len(energy.names)), np.nan)
    for i, one in enumerate(energy.names):
        for j, other in enumerate(energy.names):
            block = energy.block(one, other).reshape(-1)
            if i != j:
                found[i, j] = block[np.abs(block).argmax()]
    return found


def _two_axes(rows: int) -> tuple[Axes, Axes]:
    """Return axes beside one another in a new figure; the rows are named once."""
    from matplotlib import pyplot

    _, axes = pyplot.subplots(1, 2, figsize=(1.35 * WIDTH, height_of(rows) + 1.3), sharey=True, layout="constrained")
    return axes[0], axes[1]


def _pairs(ax: Axes, energy: Energy) -> None:
    count = len(energy.names)
    if not ax.get_shared_y_axes().get_siblings(ax)[1:]:
        name_rows(ax, energy.names)
    columns = range(0, count, math.ceil(count / MOST_COLUMNS))
    ax.set_xticks(columns, [shortened(energy.names[k]) for k in columns], rotation=90)
    ax.tick_params(length=0)
    ax.tick_params(axis="x", labelsize=9 if count <= CROWDED else 7)
    _map(ax, couplings(energy), count <= ROOMY, energy.unit)
    title(ax, "Largest coupling of each pair")


def _map(ax: Axes, values: np.ndarray, written: bool, unit: str) -> None:
    """Draw cells of numbers with a colour bar beneath; colours are centred at 0."""
    norm, colours = _norm(values), LinearSegmentedColormap.from_list("energy", SIGNED)
    edges = [np.arange(size + 1) - 0.5 for size in values.shape[::-1]]
    grid: dict[str, Any] = {"edgecolors": "white", "linewidth": 0.8} if len(values) <= PACKED else {}
    mesh = ax.pcolormesh(*edges, values, cmap=colours, norm=norm, rasterized=values.size > MOST_CELLS, **grid)
    ax.set(xlim=edges[0][[0, -1]], ylim=edges[1][[-1, 0]])
    ax.spines[:].set_visible(False)
    for row, column in np.argwhere(np.isfinite(values)) if written else ():
        value = values[row, column]
        dark = np.dot(colours(norm(value))[:3], LIGHTNESS) < 0.5
        ax.text(column, row, _number(value), ha="center", va="center", fontsize=7.5, color="white" if dark else DARK)
    _bar(ax, mesh, values, float(norm.linthresh), unit)


def _bar(ax: Axes, mesh: QuadMesh, values: np.ndarray, near: float, unit: str) -> None:
    """Draw the colours of what is seen, 0 included."""
    bar = ax.figure.colorbar(mesh, ax=ax, location="bottom", aspect=30, pad=0.02)
    low, high = min(0.0, float(np.nanmin(values, initial=0))), max(0.0, float(np.nanmax(values, initial=0)))
    ticks = _ticks(near, low, high)
    bar.set_ticks(ticks, labels=[_number(tick) for tick in ticks])
    bar.minorticks_off()
    bar.ax.set_xlim(low, high or 1.0)
    bar.set_label(unit)


def _cells(energy: Energy, widths: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return row and column of chosen widths."""
    energy(widths)  # raises where it does not know them
    columns = list(energy.to_frame().columns)
    return [(row, columns.index(np.unique(widths[name])[0])) for row, name in enumerate(energy.names)]


def _frame(ax: Axes, cells: Any, colour: str, size: float) -> None:
    for row, column in cells:
        corner = (column - size / 2, row - size / 2)
        ax.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=colour, linewidth=1.4, clip_on=False))


def _norm(values: np.ndarray) -> SymLogNorm:
    """Return colours that are linear up to the median size, at most three decades below the largest."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    top = float(sizes.max(initial=0)) or 1.0
    near = float(np.clip(np.median(sizes), 1e-3 * top, 0.5 * top)) if len(sizes) else 0.5
    return SymLogNorm(near, vmin=-top, vmax=top)


def _ticks(near: float, low: float, high: float) -> list[float]:
    """Return 0, both ends, and powers of ten of at least `near` that are apart from them.

    >>> _ticks(0.02, -0.5, 5.0)
    [-0.5, -0.1, 0.0, 0.1, 1.0, 5.0]
    """
    found = {0.0}
    for end in (end for end in (low, high) if abs(end) > 0.3 * near):
        powers = range(math.ceil(math.log10(near)), math.floor(math.log10(abs(end) / 4)) + 1)
        found |= {end, *(math.copysign(10.0**k, end) for k in powers)}
    return sorted(found)


def _number(value: float) -> str:
    """Return a number of at most six characters.

    >>> [_number(v) for v in (0, 123.4, -0.034, 0.00123, -2e-5)]
    ['0', '123', '−0.034', '0.0012', '−2e-5']
    """
    size = abs(value)
    text = f"{size:.0f}" if size >= 100 or size == 0 else f"{size:.2g}" if size >= 1e-3 else f"{size:.0e}"
    return ("−" if value < 0 else "") + text.replace("e-0", "e-")
