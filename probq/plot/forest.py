"""A forest of widths shows mean and highest-density interval of every quantizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from probq.evaluation.diagnostics import width_draws
from probq.network.program.program import Program, check_posterior
from probq.plot.common.style import (
    CROWDED,
    DARK,
    INPUT,
    WEIGHT,
    dot,
    dot_size,
    height_of,
    in_order,
    legend,
    name_rows,
    new_axes,
    title,
)
from probq.utils.errors import ProbqError

INNER = 0.5


def interval(bits: Sequence[float], probs: np.ndarray, mass: float) -> tuple[float, float]:
    """Return the shortest interval of widths, from rung to rung, that holds a mass.

    Of equally short ones it is the most probable.

    Args:
        bits: ascending widths `[B]`.
        probs: their probabilities `[B]`.
        mass: above 0, at most 1.

    >>> interval((0, 2, 4, 8), np.array([0.02, 0.5, 0.45, 0.03]), 0.94)
    (2, 4)
    """
    below = np.concatenate([[0], np.cumsum(probs)])
    held = {(i, j): below[j + 1] - below[i] for i in range(len(bits)) for j in range(i, len(bits))}
    enough = [pair for pair, value in held.items() if value >= mass - 1e-9] or [(0, len(bits) - 1)]
    i, j = min(enough, key=lambda pair: (bits[pair[1]] - bits[pair[0]], -held[pair]))
    return bits[i], bits[j]


def forest(q: Program, mass: float = 0.94, ax: Axes | None = None) -> Axes:
    """Plot the mean width in bits of every quantizer, with the highest-density interval that holds `mass`.

    A thick line holds half of the probability, a short one where a single width does; a white dot marks what was
    decided within `q.budget`. Where channels or weights have widths of their own, the law is that of one picked at
    random and the dot the mean of those decided.

    Args:
        q: a quantized network, fitted or not.
        mass: the mass of the interval, above 0 and below 1.
        ax: where to draw; by default a new figure.

    Raises:
        ProbqError: if `mass` is no such number, or gates hold NaN.

    Source: J. K. Kruschke, 2015, "Doing Bayesian Data Analysis" (highest-density intervals).
    """
    check_posterior(q, "plot.forest")
    if isinstance(mass, bool) or not isinstance(mass, int | float) or not 0 < mass < 1:
        raise ProbqError(f"mass is a probability above 0 and below 1, not {mass!r}")
    names, decided = in_order(width_draws.network_order(q), q.weight_names), width_draws.decided_widths(q, q.budget)
    ax = new_axes(ax, height_of(len(names)))
    size = dot_size(len(names))
    wide = 1.0 if size > 12 else 0.5
    thick = min(4.5 * wide, 0.7 * 72 * height_of(len(names)) / len(names))  # points, less than a row
    ticks = sorted({b for name in names for b in q.quantizer(name).ladder.bits})
    margin = 0.018 * (ticks[-1] - ticks[0] + 0.8)
    for row, name in enumerate(names):
        bits, law = q.quantizer(name).ladder.bits, width_draws.probabilities(q, name).mean(0)
        colour = WEIGHT if name in q.weight_names else INPUT
        ax.plot(interval(bits, law, mass), [row, row], color=colour, linewidth=1.3 * wide, solid_capstyle="butt")
        low, high = interval(bits, law, INNER)
        ax.plot([low - margin, high + margin], [row, row], color=colour, linewidth=thick, solid_capstyle="butt")
        ax.plot(law @ np.array(bits), row, "|", color=colour, markersize=11 * wide, markeredgewidth=1.6 * wide)
    dot(ax, [float(np.mean(decided[name])) for name in names], range(len(names)), size)
    ax.set_xticks(ticks)
    ax.set_xlim(min(ticks) - 0.4, max(ticks) + 0.4)
    ax.set_xlabel("width in bits")
    ax.grid(axis="x", color="#dddddd", linewidth=0.7)
    ax.set_axisbelow(True)
    name_rows(ax, names)
    if len(names) > CROWDED:
        ax.tick_params(axis="x", top=True, labeltop=True)
    title(ax, f"Widths with {100 * mass:.4g} % highest-density intervals")
    _legend(ax, mass)
    return ax


def _legend(ax: Axes, mass: float) -> None:
    handles = [Line2D([], [], color=WEIGHT, linewidth=3), Line2D([], [], color=INPUT, linewidth=3)]
    labels = ["weight", "input"]
    handles += [Line2D([], [], color=DARK, linewidth=1.3), Line2D([], [], color=DARK, linewidth=4.5)]
    labels += [f"{100 * mass:.4g} % interval", "50 % interval"]
    handles += [Line2D([], [], color=DARK, marker="|", linestyle="", markersize=11, markeredgewidth=1.6)]
    handles += [Line2D([], [], color=DARK, marker="o", linestyle="", markerfacecolor="white")]
    legend(ax, handles, [*labels, "mean", "decided"])
