"""Stacked probabilities of widths, a row for each quantizer."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from probq import summary
from probq.plot.style import (
    DARK,
    PACKED,
    bits_text,
    colours_of,
    dot,
    dot_size,
    height_of,
    in_order,
    legend,
    name_rows,
    new_axes,
    title,
)
from probq.program import Program


def widths(q: Program, ax: Axes | None = None) -> Axes:
    """Probability of every width, a stacked bar for each quantizer in the order of the network.

    Of more than 60, those of weights come first.

    A dot marks the width decided within `q.budget` (as `q.mode()`); hatched bars are fixed. Where channels or weights
    have widths of their own, the bar shows their mean, and a strip on it the share of them decided at each width.

    Args:
        q: a quantized network, fitted or not.
        ax: where to draw; by default a new figure.
    """
    frame, decided = summary.table(q), summary.decided_widths(q, q.budget)
    frame = frame.loc[in_order(frame.index, q.weight_names)]
    bits = sorted({b for _, quantizer in q.named_quantizers() for b in quantizer.ladder.bits})
    probs = {b: frame[f"P({b})"].fillna(0).to_numpy() for b in bits}
    ax = new_axes(ax, height_of(len(frame)))
    colours = colours_of(bits)
    _stack(ax, np.arange(len(frame)), probs, colours, [not q.quantizer(name).free for name in frame.index])
    kinds = {_mark(ax, row, q, name, decided[name], probs, colours) for row, name in enumerate(frame.index)}
    ax.set(xlim=(0, 1), xlabel="probability of each width")
    name_rows(ax, frame.index)
    title(ax, f"Posterior over the widths of {len(frame)} tensors")
    marks = {
        "dot": dot(ax, [], []),
        "strip": Patch(facecolor="none", edgecolor=DARK),
        "fixed": Patch(facecolor="#888888", edgecolor="white", hatch="////"),
    }
    labels = {"dot": "decided", "strip": "decided, share\nof the gates", "fixed": "fixed"}
    handles = [Patch(color=colours[b]) for b in bits] + [marks[kind] for kind in marks if kind in kinds]
    texts = [bits_text(b) for b in bits] + [labels[kind] for kind in marks if kind in kinds]
    legend(ax, handles, texts)
    return ax


def _stack(
    ax: Axes, rows: Any, probs: dict[int, Any], colours: dict[int, Any], hatched: Any, height: float = 0.82
) -> None:
    """Stacked bars, a colour for each width."""
    left = np.zeros(len(rows))
    for b, share in probs.items():
        bars = ax.barh(rows, share, height, left, color=colours[b], edgecolor="white", linewidth=_edge(len(rows)))
        for bar, hatch in zip(bars, hatched, strict=True):
            bar.set_hatch("////" if hatch else "")
        left += share


def _mark(ax: Axes, row: int, q: Program, name: str, decided: Any, probs: dict[int, Any], colours: Any) -> str:
    """Show what was decided for one quantizer; returns how."""
    if not q.quantizer(name).free:
        return "fixed"
    if np.ndim(decided) == 0:
        start = sum(share[row] for b, share in probs.items() if b < decided)
        x = min(max(start + probs[int(decided)][row] / 2, 0.012), 0.988)
        dot(ax, [x], [row], dot_size(len(probs[int(decided)])))
        return "dot"
    left = 0.0
    for b, colour in colours.items():
        share = float(np.mean(decided == b))
        ax.barh(row + 0.24, share, 0.26, left, color=colour, edgecolor=DARK, linewidth=0.9 if share else 0)
        left += share
    return "strip"


def _edge(rows: int) -> float:
    """White lines between bars, thinner where bars are."""
    return 0.6 if rows <= PACKED else 0.2
