"""This picture shows the coverage of predictive intervals."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

from matplotlib.axes import Axes

from probq.evaluation.metrics.regression import Coverage
from probq.plot.common.style import COST, DARK, LOSS, legend, new_axes, shortened, title
from probq.utils.errors import ProbqError

COLOURS = (LOSS, COST, "#2a7f62", "#7b3f98")


def coverage(found: Coverage | Mapping[str, Coverage], ax: Axes | None = None) -> Axes:
    """Plot the share of targets within their predictive intervals in %, against what these promise, with 94 % bands.

    On the diagonal a promise is kept; below it intervals are too narrow, above it too wide.

    Args:
        found: from `probq.regression.coverage`, or several by name.
        ax: where to draw; by default a new figure.

    Raises:
        ProbqError: if it is none.

    Source: T. Gneiting, F. Balabdaoui, A. E. Raftery, 2007, "Probabilistic Forecasts, Calibration and Sharpness".
    """
    several = {"intervals": found} if isinstance(found, Coverage) else found
    if not isinstance(several, Mapping) or not several or not all(isinstance(c, Coverage) for c in several.values()):
        raise ProbqError("coverage takes what probq.regression.coverage gives, or several of them by name in a dict")
    ax = new_axes(ax, 3.8)
    ax.plot([0, 100], [0, 100], color=DARK, linewidth=1, linestyle="--", label="honest")
    for (name, one), colour in zip(several.items(), cycle(COLOURS), strict=False):
        promised = 100 * one.levels
        ax.plot(promised, 100 * one.share, color=colour, marker="o", markersize=3, label=shortened(name))
        ax.fill_between(promised, 100 * one.low, 100 * one.high, color=colour, alpha=0.15, linewidth=0)
    ax.set(xlim=(0, 100), ylim=(0, 101), xlabel="what the interval promises, in %", ylabel="targets inside, in %")
    ax.spines[["top", "right"]].set_visible(False)
    counts = " / ".join(f"{count:,}" for count in dict.fromkeys(one.n for one in several.values()))
    title(ax, f"Coverage of predictive intervals, {counts} targets, with 94 % bands")
    legend(ax, *ax.get_legend_handles_labels())
    return ax
