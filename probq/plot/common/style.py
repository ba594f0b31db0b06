"""All pictures share sizes, colours that all kinds of colour vision tell apart, names of rows, and legends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from probq.network.program.program import Program

WIDTH = 7.2  # inches: a notebook's column
CROWDED, PACKED = 24, 60  # rows from which names are small, and from which only some are written
TALLEST = 10.8  # inches: a page
DARK = "#222222"
LIMIT = "#d62728"
LOSS, COST = "#1f4e9c", "#c05a00"  # blue and orange stay apart for all kinds of colour vision
WEIGHT, INPUT = LOSS, COST
PALE = "#7a9cc6"


def new_axes(ax: Axes | None, height: float) -> Axes:
    """Return the given axes, or those of a new figure as wide as a notebook."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(WIDTH, height), layout="constrained")[1]


def height_of(rows: int) -> float:
    """Return the inches that a picture with this many rows takes; never more than a page."""
    return max(2.1, 1.2 + min((0.27 if rows <= CROWDED else 0.18) * rows, TALLEST))


def in_order(names: Sequence[str], weights: Sequence[str]) -> list[str]:
    """Return the rows of a picture in the order of the network; of very many, weights come first and inputs below."""
    return list(names) if len(names) <= PACKED else sorted(names, key=lambda name: name not in weights)


def name_rows(ax: Axes, names: Sequence[str]) -> None:
    """Name the rows from top to bottom; of very many only some."""
    step = math.ceil(len(names) / PACKED)
    ax.set_yticks(range(0, len(names), step), list(map(shortened, names))[::step])
    ax.tick_params(axis="y", length=0, labelsize=9 if len(names) <= CROWDED else 7)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.spines[["top", "right", "left"]].set_visible(False)


def name_columns(ax: Axes, names: Sequence[str]) -> None:
    """Name the layers from left to right; number them where names would not fit."""
    ax.set_xlim(-0.5, len(names) - 0.5)
    if len(names) <= CROWDED:
        turned = len(names) > 8 or max(map(len, names), default=0) > 8
        ax.set_xticks(range(len(names)), list(map(shortened, names)), rotation=90 if turned else 0, fontsize=9)
        ax.set_xlabel("layer")
    else:
        step = next(s for s in (5, 10, 20, 50, 100, 200, 500, len(names)) if len(names) / s <= 12)
        ax.set_xticks(range(step - 1, len(names), step), [str(k) for k in range(step, len(names) + 1, step)])
        ax.set_xlabel("layer, counted from the network's input")


def colours_of(bits: Sequence[float]) -> dict[float, Any]:
    """Return a colour for each width, darker for more bits."""
    positions = np.linspace(0.97, 0.08, len(bits)) if len(bits) > 1 else [0.45]
    return dict(zip(bits, colormaps["viridis"](positions), strict=True))


def widths_colours(q: Program) -> dict[float, Any]:
    """Return the colours of all widths on a network's ladders, the same in every picture of it."""
    return colours_of(sorted({b for _, quantizer in q.named_quantizers() for b in quantizer.ladder.bits}))


def title(ax: Axes, text: str) -> None:
    """Add a title that may serve as a caption."""
    ax.set_title(text, fontsize=11, x=0, ha="left")


def legend(ax: Axes, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Add a legend right of the picture."""
    ax.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, borderaxespad=0)


def dot(ax: Axes, x: Any, y: Any, size: float = 30, cores: Sequence[Any] = ()) -> Any:
    """Draw white dots with a dark edge, which mark what was decided.

    Cores show its colour where dots are large enough for one.
    """
    cored = len(cores) > 0 and size > 12
    white = ax.scatter(
        x, y, 1.6 * size if cored else size, "white", edgecolors=DARK, linewidths=1.2 if size > 12 else 0.5, zorder=3
    )
    if cored:
        ax.scatter(x, y, 0.6 * size, cores, linewidths=0, zorder=4)
    return white


def dot_size(count: int) -> float:
    """Return the area of a dot in square points, so that this many stand beside one another."""
    return 30 if count <= PACKED else max(3.0, 30 * PACKED / count)


def bits_text(b: float) -> str:
    """Return a width as text, `3 bits`."""
    return "0 bits (pruned)" if b == 0 else f"{b} bit" if b == 1 else f"{b:.3g} bits"


def shortened(name: str) -> str:
    """Return a name of 32 characters at most, all of which can be drawn, in which a dollar begins no formula."""
    short = name if len(name) <= 32 else f"{name[:12]}…{name[-19:]}"
    short = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in short)
    return short.replace("$", r"\$")


def unit(name: str) -> str:
    """Return the unit of a cost's name."""
    units = {"bops": "BOPs", "storage": "bits of storage", "ebops": "effective BOPs", "pruned_bops": "BOPs"}
    bits = {"activations": "bits of activations", "largest_activation": "bits of the largest activation"}
    return (units | bits).get(name, name)
