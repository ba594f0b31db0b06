"""Stacked bars show the probabilities of widths, a row for each quantizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from probq.evaluation.diagnostics import width_draws
from probq.evaluation.diagnostics.table import table
from probq.network.program.program import Program, check_posterior
from probq.plot.common.style import (
    DARK,
    PACKED,
    bits_text,
    dot,
    dot_size,
    height_of,
    in_order,
    legend,
    name_rows,
    new_axes,
    title,
    widths_colours,
)
from probq.utils.numbers import exact_number


def widths(q: Program, ax: Axes | None = None) -> Axes:
    """Plot the probability of every width, a stacked bar for each quantizer in the order of the network.

    Of more than 60, those of weights come first.

    A dot marks the width decided within `q.budget` (as `q.mode()`), with the colour of that width in its middle;
    hatched bars are fixed. Where channels or weights have widths of their own, the bar shows their mean, and a strip on
    it the share of them decided at each width.

    Args:
        q: a quantized network, fitted or not.
        ax: where to draw; by default a new figure.
    """
    check_posterior(q, "plot.widths")
    frame, decided = table(q), width_draws.decided_widths(q, q.budget)
    frame = frame.loc[in_order(frame.index, q.weight_names)]
    colours = widths_colours(q)
    probs = {b: frame[f"P({b})"].fillna(0).to_numpy() for b in colours}
    ax = new_axes(ax, height_of(len(frame)))
    _stack(ax, np.arange(len(frame)), probs, colours, [not q.quantizer(name).free for name in frame.index])
    kinds = _mark(ax, q, [(name, decided[name]) for name in frame.index], probs, colours)
    ax.set(xlim=(0, 1), xlabel="probability of each width")
    name_rows(ax, frame.index)
    title(ax, f"Posterior over the widths of {len(frame)} tensors")
    marks = {
        "dot": dot(ax, [], []),
        "strip": Patch(facecolor="none", edgecolor=DARK),
        "fixed": Patch(facecolor="#888888", edgecolor="white", hatch="////"),
    }
    labels = {"dot": "decided", "strip": "decided, share\nof the gates", "fixed": "fixed"}
    handles = [Patch(color=colour) for colour in colours.values()] + [marks[kind] for kind in marks if kind in kinds]
    texts = [bits_text(b) for b in colours] + [labels[kind] for kind in marks if kind in kinds]
    legend(ax, handles, texts)
    return ax


def _stack(ax: Axes, rows: Any, probs: dict[float, Any], colours: dict[float, Any], hatched: Any) -> None:
    """Draw stacked bars, a colour for each width; of very many rows they touch."""
    left, many = np.zeros(len(rows)), len(rows) > PACKED
    for b, share in probs.items():
        style = {"color": colours[b], "edgecolor": "white", "linewidth": 0 if many else 0.6}
        bars = ax.barh(rows, share, 1.0 if many else 0.82, left, **style)
        for bar, hatch in zip(bars, hatched, strict=True):
            bar.set_hatch("////" if hatch else "")
        left += share


def _mark(
    ax: Axes, q: Program, rows: Sequence[tuple[str, Any]], probs: dict[float, Any], colours: dict[float, Any]
) -> set[str]:
    """Draw what was decided for each row, and return how."""
    free = [(row, decided) for row, (name, decided) in enumerate(rows) if q.quantizer(name).free]
    whole = [(row, exact_number(decided)) for row, decided in free if np.ndim(decided) == 0]
    starts = [sum(share[row] for b, share in probs.items() if b < decided) for row, decided in whole]
    middles = [start + probs[decided][row] / 2 for start, (row, decided) in zip(starts, whole, strict=True)]
    at, cores = np.clip(middles, 0.012, 0.988), [colours[decided] for _, decided in whole]
    dot(ax, at, [row for row, _ in whole], dot_size(len(rows)), cores)
    strips = [(row, decided) for row, decided in free if np.ndim(decided)]
    _strips(ax, np.array([row for row, _ in strips]), [decided for _, decided in strips], colours, len(rows))
    found = {"dot": whole, "strip": strips, "fixed": len(rows) - len(free)}
    return {kind for kind, some in found.items() if some}


def _strips(ax: Axes, rows: np.ndarray, decided: Sequence[Any], colours: dict[float, Any], count: int) -> None:
    """Draw the shares of the gates decided at each width as a strip on the bar; of very many rows it has no edge."""
    left = np.zeros(len(rows))
    for b, colour in colours.items():
        share = np.array([float(np.mean(widths == b)) for widths in decided])
        edges = np.where(share > 0, 0.9 if count <= PACKED else 0, 0)
        ax.barh(rows + 0.24, share, 0.26, left, color=colour, edgecolor=DARK, linewidth=edges)
        left += share
