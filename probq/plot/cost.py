"""This picture shows the distribution of the cost against the limit."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from probq import cost as costs
from probq.cost.budget import Budgets, budgets
from probq.decisions.within_budget import probability_within
from probq.evaluation.diagnostics import width_draws
from probq.network.program.program import Program, check_posterior
from probq.plot.common.style import DARK, LIMIT, PALE, legend, new_axes, title, unit


def cost(q: Program, budget: Budgets = None, ax: Axes | None = None) -> Axes:
    """Plot the distribution of the cost of 10,000 draws of widths, in percent of the 32-bit network.

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
    check_posterior(q, "plot.cost")
    every = budgets(budget or q.budget)
    function = every[0].cost if every else width_draws.cost_of(q)
    drawn = width_draws.draw_costs(q, width_draws.draw_widths(q, width_draws.cost_draws(q), 0)[0], function)
    decided = costs.percent(costs.total(q.layers, width_draws.decided_widths(q, every), function), q.layers, function)
    limit = costs.percent(every[0].absolute(q.layers), q.layers, function) if every else None
    ax = new_axes(ax, 3.2)
    edges = _edges([drawn.min(), np.quantile(drawn, 0.999), decided, *([] if limit is None else [limit])])
    share = np.histogram(drawn, edges)[0] / len(drawn)
    ax.stairs(share, edges, fill=True, color=PALE, label="draws from the posterior")
    ax.set_ylim(0, 1.18 * share.max())
    if limit is not None:
        ax.axvline(limit, color=LIMIT, linewidth=1.6, label=f"limit {limit:.3g} %")
    ax.plot(decided, 0, "^", color=DARK, markersize=10, clip_on=False, zorder=4, label=f"decided {decided:.3g} %")
    ax.set(
        xlabel=f"cost ({unit(costs.name(function))}) in % of the 32-bit network",
        ylabel="share of draws",
        xlim=edges[[0, -1]],
    )
    kept = "all limits kept" if len(every) > 1 else "cost ≤ limit"
    shown = f": P({kept}) = {probability_within(q, every):.3g}" if every else ""
    title(ax, "Cost of draws from the posterior" + shown)
    legend(ax, *ax.get_legend_handles_labels())
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _edges(seen: list[float]) -> np.ndarray:
    """Return the bounds of 61 bins that hold all that is seen, with a margin; a single value is mid-bin."""
    low, high = float(min(seen)), float(max(seen))
    margin = 0.06 * (high - low) or max(0.05 * abs(high), 1e-6)
    return np.linspace(low - margin, high + margin, 62)
