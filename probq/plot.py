"""Pictures of a posterior over widths, of what it costs, and of a fit; each function returns matplotlib Axes."""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np
import pandas
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from probq import cost as costs
from probq import summary
from probq.budget import Budgets, budgets
from probq.decide import probability_within
from probq.errors import ProbqError
from probq.files import replacing
from probq.history import History
from probq.program import Program

WIDTH = 7.2  # inches: a notebook's column
SMOOTH = 25  # steps
CROWDED = 24  # rows
DARK = "#222222"
LIMIT = "#d62728"
LOSS, COST = "#1f4e9c", "#c05a00"  # blue and orange stay apart for all kinds of colour vision


def widths(q: Program, ax: Axes | None = None) -> Axes:
    """Probability of every width, a stacked bar for each quantizer in the order of the network.

    A dot marks the width decided within `q.budget` (as `q.mode()`); hatched bars are fixed. Where channels or weights
    have widths of their own, the bar shows their mean, and a strip on it the share of them decided at each width.

    Args:
        q: a quantized network, fitted or not.
        ax: where to draw; by default a new figure.
    """
    frame, decided = summary.table(q), summary.decided_widths(q, q.budget)
    bits = sorted({b for _, quantizer in q.named_quantizers() for b in quantizer.ladder.bits})
    probs = {b: frame[f"P({b})"].fillna(0).to_numpy() for b in bits}
    ax = _axes(ax, max(2.1, 0.9 + (0.27 if len(frame) <= CROWDED else 0.18) * len(frame)))
    positions = np.linspace(0.97, 0.08, len(bits)) if len(bits) > 1 else [0.45]
    colours = dict(zip(bits, colormaps["viridis"](positions), strict=True))
    _stack(ax, np.arange(len(frame)), probs, colours, [not q.quantizer(name).free for name in frame.index])
    kinds = {_mark(ax, row, q, name, decided[name], probs, colours) for row, name in enumerate(frame.index)}
    names = [_shortened(name) for name in frame.index]
    ax.set_yticks(range(len(names)), names, fontsize=9 if len(names) <= CROWDED else 7)
    ax.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, 1), xlabel="probability of each width")
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    marks = {
        "dot": _dot(ax, [], []),
        "strip": Patch(facecolor="none", edgecolor=DARK),
        "fixed": Patch(facecolor="#888888", edgecolor="white", hatch="////"),
    }
    labels = {"dot": "decided", "strip": "decided, share\nof the gates", "fixed": "fixed"}
    handles = [Patch(color=colours[b]) for b in bits] + [marks[kind] for kind in marks if kind in kinds]
    texts = [_bits(b) for b in bits] + [labels[kind] for kind in marks if kind in kinds]
    _legend(ax, handles, texts)
    return ax


def _stack(
    ax: Axes, rows: Any, probs: dict[int, Any], colours: dict[int, Any], hatched: Any, height: float = 0.82
) -> None:
    """Stacked bars, a colour for each width."""
    left = np.zeros(len(rows))
    for b, share in probs.items():
        bars = ax.barh(rows, share, height, left, color=colours[b], edgecolor="white", linewidth=0.6)
        for bar, hatch in zip(bars, hatched, strict=True):
            bar.set_hatch("////" if hatch else "")
        left += share


def _mark(ax: Axes, row: int, q: Program, name: str, decided: Any, probs: dict[int, Any], colours: Any) -> str:
    """Show what was decided for one quantizer; returns how."""
    if not q.quantizer(name).free:
        return "fixed"
    if np.ndim(decided) == 0:
        start = sum(share[row] for b, share in probs.items() if b < decided)
        _dot(ax, [min(max(start + probs[int(decided)][row] / 2, 0.012), 0.988)], [row])
        return "dot"
    left = 0.0
    for b, colour in colours.items():
        share = float(np.mean(decided == b))
        ax.barh(row + 0.24, share, 0.26, left, color=colour, edgecolor=DARK, linewidth=0.9 if share else 0)
        left += share
    return "strip"


def _dot(ax: Axes, x: list[float], y: list[float]) -> Any:
    return ax.scatter(x, y, 30, "white", edgecolors=DARK, linewidths=1.2, zorder=3)


def _legend(ax: Axes, handles: list[Any], labels: list[str]) -> None:
    ax.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, borderaxespad=0)


def _bits(b: int) -> str:
    return "0 bits (pruned)" if b == 0 else f"{b} bit" if b == 1 else f"{b} bits"


def _shortened(name: str) -> str:
    return name if len(name) <= 32 else f"{name[:12]}…{name[-19:]}"


def cost(q: Program, budget: Budgets = None, ax: Axes | None = None) -> Axes:
    """Distribution of the cost of 10,000 draws of widths, in percent of the 32-bit network.

    A vertical line marks the limit, a triangle what `q.mode(budget)` costs; the title gives `P(cost <= limit)`. The
    most expensive thousandth of the draws may lie outside of the picture. Of several limits the picture shows the
    first; the mode keeps all of them, and the probability is that of keeping all.

    Args:
        q: a quantized network, fitted or not.
        budget: the limit or a list of them; by default what was last fitted for, if anything.
        ax: where to draw; by default a new figure.

    Raises:
        ProbqError: if the budget is below the cheapest reachable cost.
    """
    every = budgets(budget or q.budget)
    function = every[0].cost if every else summary.cost_of(q)
    percent = 100 / costs.full(q.layers, function)
    drawn = summary.draw_costs(q, summary.draw_widths(q, summary.cost_draws(q), 0)[0], function)
    decided = percent * costs.total(q.layers, summary.decided_widths(q, every), function)
    limit = percent * every[0].absolute(q.layers) if every else None
    ax = _axes(ax, 3.2)
    edges = _edges([drawn.min(), np.quantile(drawn, 0.999), decided, *([] if limit is None else [limit])])
    share = np.histogram(drawn, edges)[0] / len(drawn)
    ax.stairs(share, edges, fill=True, color="#7a9cc6", label="draws from the posterior")
    ax.set_ylim(0, 1.18 * share.max())
    if limit is not None:
        ax.axvline(limit, color=LIMIT, linewidth=1.6, label=f"limit {limit:.3g} %")
    ax.plot(decided, 0, "^", color=DARK, markersize=10, clip_on=False, zorder=4, label=f"decided {decided:.3g} %")
    ax.set(xlabel=f"cost ({_unit(function)}) in % of the 32-bit network", ylabel="share of draws", xlim=edges[[0, -1]])
    if every:
        kept = f"P(cost ≤ limit) = {probability_within(q, every):.3g}"
        ax.set_title(kept if len(every) == 1 else kept.replace("cost ≤ limit", "all limits kept"), fontsize=11)
    _legend(ax, *ax.get_legend_handles_labels())
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _edges(seen: list[float]) -> np.ndarray:
    """Bounds of 60 bins that hold all that is seen, with a margin."""
    low, high = float(min(seen)), float(max(seen))
    margin = 0.06 * (high - low) or max(0.05 * abs(high), 1e-6)
    return np.linspace(low - margin, high + margin, 61)


def _unit(cost: costs.Cost) -> str:
    units = {"bops": "BOPs", "storage": "bits of storage", "ebops": "effective BOPs", "pruned_bops": "BOPs"}
    bits = {"activations": "bits of activations", "largest_activation": "bits of the largest activation"}
    return (units | bits).get(costs.name(cost), costs.name(cost))


def history(history: History, ax: Axes | None = None) -> Axes:
    """Loss of every step in nats (left), and `E[cost]` with the limit in force in percent (right, logarithmic).

    The phase in which widths are learned is white, the fine-tuning of what was decided is shaded.

    Args:
        history: from `fit`.
        ax: where to draw; by default a new figure.

    Raises:
        ProbqError: if the history holds no step.
    """
    if not history.steps:
        raise ProbqError("the history holds no step; fit first")
    frame = history.to_frame()
    ax = _axes(ax, 3.4)
    steps = frame["step"].to_numpy()
    ax.plot(steps, frame["loss"], color=LOSS, alpha=0.2, linewidth=0.7)
    smooth = frame[["loss", "nll"]].rolling(SMOOTH, center=True, min_periods=1).mean()
    ax.plot(steps, smooth["loss"], color=LOSS, linewidth=1.6, label=f"loss, mean of {SMOOTH} steps")
    ax.plot(steps, smooth["nll"], color=LOSS, linewidth=1.2, linestyle=":", label="−log-likelihood alone")
    ax.set_ylim(_range(smooth.to_numpy(), frame["loss"].to_numpy()))
    ax.set_xlabel("step")
    ax.set_ylabel("loss in nats per example", color=LOSS)
    ax.tick_params(axis="y", colors=LOSS)
    _cost_axis(ax, frame)
    return ax


def _cost_axis(ax: Axes, frame: pandas.DataFrame) -> None:
    """Expected cost and limit on a second axis, phases shaded, one legend for both axes."""
    right, steps = ax.twinx(), frame["step"].to_numpy()
    right.plot(steps, frame["percent"].where(frame["percent"] > 0), color=COST, linewidth=1.6, label="E[cost]")
    if frame["limit"].notna().any():
        limit = frame["limit"].astype(float)
        right.plot(steps, limit, color=COST, linewidth=1.2, linestyle="--", label="limit in force")
    if (frame["percent"] > 0).any():
        right.set_yscale("log")
        right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    right.yaxis.set_minor_formatter(NullFormatter())
    right.set_ylabel("cost in % of the 32-bit network", color=COST)
    right.tick_params(axis="y", which="both", colors=COST)
    tune = steps[(frame["phase"] == "tune").to_numpy()]
    handles, labels = (
        a + b for a, b in zip(ax.get_legend_handles_labels(), right.get_legend_handles_labels(), strict=True)
    )
    if len(tune):
        handles.append(ax.axvspan(tune[0] - 0.5, tune[-1] + 0.5, color="#000000", alpha=0.07, linewidth=0))
        labels.append("fine-tuning at decided widths" if len(tune) < len(steps) else "fine-tuning")
    ax.margins(x=0)
    ax.spines["top"].set_visible(False)
    right.spines["top"].set_visible(False)
    ax.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0, 1.01), ncols=3, frameon=False, borderaxespad=0, fontsize=9
    )


def pareto(table: pandas.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy in percent (or loss in nats) over the cost decided, a point for each budget.

    A bar from `low` to `high` holds 94 % of the costs of draws from the posterior, with a tick at their expectation.
    A line joins the points that no other dominates; crosses are dominated.

    Args:
        table: from `probq.pareto`, with validation batches.
        ax: where to draw; by default a new figure.

    Raises:
        ProbqError: if the table has neither accuracy nor loss.
    """
    if "loss" not in table:
        raise ProbqError("there is no accuracy or loss to draw; give probq.pareto validation batches")
    ax = _axes(ax, 3.6)
    classes = "accuracy" in table
    y = 100 * table["accuracy"] if classes else table["loss"]
    ax.hlines(y, table["low"], table["high"], color="#7a9cc6", linewidth=5, label="94 % of draws", zorder=1)
    ax.plot(table["expected cost"], y, "|", color=LOSS, markersize=11, label="expected cost")
    best = table[~table["dominated"]].sort_values("cost").index
    ax.plot(table["cost"][best], y[best], "o-", color=DARK, label="decided")
    if table["dominated"].any():
        others = table.index[table["dominated"]]
        ax.plot(table["cost"][others], y[others], "x", color=LIMIT, markersize=8, label="decided, dominated")
    ax.set_xscale("log")
    for pick in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        pick(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.set(xlabel=f"cost ({_unit(table.attrs.get('cost', 'cost'))}) in % of the 32-bit network")
    ax.set_ylabel("accuracy in %" if classes else "loss in nats per example")
    _legend(ax, *ax.get_legend_handles_labels())
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _range(smooth: np.ndarray, raw: np.ndarray) -> tuple[float, float]:
    """Ends of the loss axis: all of the smooth curves, and all but the outliers of the raw one."""
    low, high = min(np.nanmin(smooth), np.quantile(raw, 0.01)), max(np.nanmax(smooth), np.quantile(raw, 0.99))
    margin = 0.05 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def save(ax: Axes, path: str | PathLike[str]) -> None:
    """Write the figure of `ax` to a file in the format of its suffix, whole or not at all, and close the figure.

    Raises:
        ProbqError: if the file cannot be written, or matplotlib does not know its format.
    """
    from matplotlib import pyplot

    figure = ax.get_figure(root=True)
    assert figure is not None
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=150)
    except ProbqError:
        raise
    except ValueError as error:
        raise ProbqError(f"cannot write {path}: {error}") from error
    finally:
        pyplot.close(figure)


def _axes(ax: Axes | None, height: float) -> Axes:
    """The given axes, or those of a new figure as wide as a notebook."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(WIDTH, height), layout="constrained")[1]
