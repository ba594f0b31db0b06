"""Stacked bars show the probabilities of widths along the depth of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from probq.evaluation.diagnostics import width_draws
from probq.network.program.program import Program, check_posterior
from probq.plot.common.style import (
    CROWDED,
    bits_text,
    dot,
    dot_size,
    legend,
    name_columns,
    new_axes,
    title,
    widths_colours,
)
from probq.utils.errors import ProbqError

FLOAT = "#bbbbbb"


def depth(q: Program, kind: Literal["weight", "input"] = "weight", ax: Axes | None = None) -> Axes:
    """Plot the probability of every width of weights (or inputs), a stacked bar for each layer along the depth.

    A dot marks what was decided within `q.budget`, as in `widths`, where all numbers of a tensor share one width; the
    bar of others shows the mean over their gates. A layer in float is grey, a width that is not learned hatched. The
    colours are those of `widths`.

    Args:
        q: a quantized network, fitted or not.
        kind: "weight" or "input".
        ax: where to draw; by default a new figure.

    Raises:
        ProbqError: if `kind` is another word, or gates hold NaN.
    """
    check_posterior(q, "plot.depth")
    if kind not in ("weight", "input"):
        raise ProbqError(f'kind is "weight" or "input", not {kind!r}')
    names = [getattr(layer, kind) for layer in q.layers]
    laws = {name: width_draws.probabilities(q, name).mean(0) for name in names if name in q}
    ax = new_axes(ax, 3.2)
    shown = {**_bars(ax, q, names, laws), **_dots(ax, q, names, laws)}
    legend(ax, list(shown.values()), list(shown))
    name_columns(ax, [layer.name for layer in q.layers])
    ax.set(ylim=(0, 1), ylabel="probability of each width")
    ax.spines[["top", "right"]].set_visible(False)
    title(ax, f"Posterior over the widths of the {kind}s of {len(names)} layer{'s'[: len(names) != 1]}")
    return ax


def _bars(ax: Axes, q: Program, names: Sequence[str | None], laws: dict[str, np.ndarray]) -> dict[str, Any]:
    """Draw a stacked bar for each layer, and return the legend's entries."""
    bits = sorted({b for name in laws for b in q.quantizer(name).ladder.bits})
    colours, columns = widths_colours(q), np.arange(len(names))
    fixed = [name in laws and not q.quantizer(name).free for name in names]
    hatches = ["////" if own else "" for own in fixed]
    bottom, wide = np.zeros(len(names)), 0.82 if len(names) <= CROWDED else 1.0
    for b in bits:
        share = np.array([_share(q, name, laws, b) for name in names])
        ax.bar(columns, share, wide, bottom, color=colours[b], edgecolor="white", linewidth=0, hatch=hatches)
        bottom += share
    absent = [k for k, name in enumerate(names) if name not in laws]
    ax.bar(absent, np.ones(len(absent)), wide, color=FLOAT, linewidth=0)
    shown: dict[str, Any] = {bits_text(b): Patch(color=colours[b]) for b in bits}
    if any(fixed):
        shown["fixed"] = Patch(facecolor="#888888", edgecolor="white", hatch="////")
    return {**shown, "float": Patch(color=FLOAT)} if absent else shown


def _dots(ax: Axes, q: Program, names: Sequence[str | None], laws: dict[str, np.ndarray]) -> dict[str, Any]:
    """Draw what was decided, where a tensor has one width, and return the legend's entry."""
    decided = width_draws.decided_widths(q, q.budget)
    free = [(k, name) for k, name in enumerate(names) if name is not None and name in laws and q.quantizer(name).free]
    whole = [(k, name) for k, name in free if np.ndim(decided[name]) == 0]
    if not whole:
        return {}
    heights = [_middle(q, name, laws, decided[name]) for _, name in whole]
    cores = [widths_colours(q)[decided[name]] for _, name in whole]
    return {"decided": dot(ax, [k for k, _ in whole], heights, dot_size(len(names)), cores)}


def _share(q: Program, name: str | None, laws: dict[str, np.ndarray], b: float) -> float:
    """Return the probability of one width, 0 where it is not on the ladder."""
    if name not in laws or b not in q.quantizer(name).ladder.bits:
        return 0.0
    return float(laws[name][q.quantizer(name).ladder.bits.index(b)])


def _middle(q: Program, name: str, laws: dict[str, np.ndarray], width: float) -> float:
    """Return the height of the middle of the decided width's part of a bar."""
    rung = q.quantizer(name).ladder.bits.index(width)
    return float(min(max(laws[name][:rung].sum() + laws[name][rung] / 2, 0.02), 0.98))
