"""This picture shows the traces of a fit."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from probq.plot.common.style import COST, DARK, LOSS, new_axes, title
from probq.utils.errors import ProbqError

if TYPE_CHECKING:
    from probq.training.svi.history import History

SMOOTH = 25  # steps
COSTS = (COST, "#007a5e", "#8c3f8c")  # of the first, second and third budget


def history(history: History, ax: Axes | None = None) -> Axes:
    """Plot the loss of every step in nats (left), and `E[cost]` with the limit in force in percent (right, log scale).

    Of several budgets every one has its two lines, numbered in the order of the budgets.

    The phase in which widths are learned is white, the fine-tuning of what was decided is shaded, and trials between
    them, if any, lightly so; each of these begins where the search ended. Dots show the loss on
    validation batches at the end of an epoch.

    Args:
        history: from `fit`.
        ax: where to draw; by default a new figure.

    Raises:
        ProbqError: if the history holds no step.
    """
    if not history.steps:
        raise ProbqError("the history holds no step; fit first")
    frame = history.to_frame()
    ax = new_axes(ax, 3.4)
    steps = frame["step"].to_numpy()
    ax.plot(steps, frame["loss"], color=LOSS, alpha=0.2, linewidth=0.7)
    smooth = frame[["loss", "nll"]].rolling(SMOOTH, center=True, min_periods=1).mean()
    ax.plot(steps, smooth["loss"], color=LOSS, linewidth=1.6, label=f"loss, mean of {SMOOTH} steps")
    ax.plot(steps, smooth["nll"], color=LOSS, linewidth=1.2, linestyle=":", label="−log-likelihood alone")
    held = frame.groupby("epoch")["step"].last()
    seen = [(held[row["epoch"]], row["loss"]) for row in history.validation if row["epoch"] in held.index]
    if seen:
        look: dict[str, Any] = {"color": LOSS, "markerfacecolor": "white", "markersize": 5}
        ax.plot(*zip(*seen, strict=True), "o", clip_on=False, zorder=4, label="validation loss at the mode", **look)
    curves = np.concatenate([smooth.to_numpy().reshape(-1), [loss for _, loss in seen]])
    ax.set_ylim(_range(curves, frame["loss"].to_numpy()))
    ax.set_xlabel("step")
    ax.set_ylabel("loss in nats per example", color=LOSS)
    ax.tick_params(axis="y", colors=LOSS)
    _cost_axis(ax, frame)
    title(ax, "Loss and expected cost during the fit")
    return ax


def _cost_axis(ax: Axes, frame: pandas.DataFrame) -> None:
    """Draw expected cost and limit on a second axis, with phases shaded and one legend for both axes."""
    right, steps = ax.twinx(), frame["step"].to_numpy()
    several = "percent 2" in frame
    ends = [name.removeprefix("percent") for name in frame if name.startswith("percent")]
    for color, end in zip(cycle(COSTS), ends, strict=False):
        number = (end or " 1") if several else ""
        right.plot(steps, _positive(frame["percent" + end]), color=color, linewidth=1.6, label="E[cost]" + number)
        limit = frame["limit" + end].astype(float)
        if limit.notna().any():
            right.plot(steps, limit, color=color, linewidth=1.2, linestyle="--", label="limit in force" + number)
    if (frame["percent"] > 0).any():
        right.set_yscale("log")
        right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    right.yaxis.set_minor_formatter(NullFormatter())
    color = DARK if several else COST  # of an axis for lines of several colours
    right.set_ylabel("cost in % of the 32-bit network", color=color)
    right.tick_params(axis="y", which="both", colors=color)
    trial, tune = (steps[(frame["phase"] == phase).to_numpy()] for phase in ("trial", "tune"))
    handles, labels = (
        a + b for a, b in zip(ax.get_legend_handles_labels(), right.get_legend_handles_labels(), strict=True)
    )
    if len(trial):
        handles.append(ax.axvspan(trial[0] - 0.5, trial[-1] + 0.5, color="#000000", alpha=0.03, linewidth=0))
        labels.append("trials of the best widths")
    if len(tune):
        handles.append(ax.axvspan(tune[0] - 0.5, tune[-1] + 0.5, color="#000000", alpha=0.07, linewidth=0))
        labels.append("fine-tuning at decided widths" if len(tune) < len(steps) else "fine-tuning")
    ax.margins(x=0)
    ax.spines["top"].set_visible(False)
    right.spines["top"].set_visible(False)
    ax.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2, frameon=False, borderaxespad=0, fontsize=9
    )


def _positive(values: pandas.Series) -> pandas.Series:
    return values.where(values > 0)


def _range(smooth: np.ndarray, raw: np.ndarray) -> tuple[float, float]:
    """Return the ends of the loss axis, which shows all of the smooth curves and all of the raw one but outliers."""
    low, high = min(np.nanmin(smooth), np.quantile(raw, 0.01)), max(np.nanmax(smooth), np.quantile(raw, 0.99))
    margin = 0.05 * (high - low) or 0.5
    return float(low - margin), float(high + margin)
