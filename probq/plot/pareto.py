"""This picture shows accuracy against cost under several budgets."""

from __future__ import annotations

import pandas
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from probq.plot.common.style import DARK, LIMIT, LOSS, PALE, legend, new_axes, title, unit
from probq.utils.errors import ProbqError


def pareto(table: pandas.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the accuracy in percent (or loss in nats) over the cost decided, a point for each budget.

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
    ax = new_axes(ax, 3.6)
    classes = "accuracy" in table
    y = 100 * table["accuracy"] if classes else table["loss"]
    ax.hlines(y, table["low"], table["high"], color=PALE, linewidth=5, label="94 % of draws", zorder=1)
    ax.plot(table["expected cost"], y, "|", color=LOSS, markersize=11, label="expected cost")
    best = table[~table["dominated"]].sort_values("cost").index
    ax.plot(table["cost"][best], y[best], "o-", color=DARK, label="decided")
    if table["dominated"].any():
        others = table.index[table["dominated"]]
        ax.plot(table["cost"][others], y[others], "x", color=LIMIT, markersize=8, label="decided, dominated")
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel=f"cost ({unit(table.attrs.get('cost', 'cost'))}) in % of the 32-bit network")
    ax.set_ylabel("accuracy in %" if classes else "loss in nats per example")
    legend(ax, *ax.get_legend_handles_labels())
    ax.spines[["top", "right"]].set_visible(False)
    title(ax, f"{'Accuracy' if classes else 'Loss'} against cost under {len(table)} budget{'s'[: len(table) != 1]}")
    return ax
