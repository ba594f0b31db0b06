"""A reliability diagram shows whether confidences mean what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from probq.evaluation.metrics.reliability import reliability_of
from probq.plot.common.style import DARK, PALE, WEIGHT, legend, new_axes, title


def reliability(predictions: Any, targets: Any, bins: int = 10, ax: Axes | None = None) -> Axes:
    """Plot the accuracy in % against confidence in %, with 94 % intervals.

    On the diagonal a confidence means what it says.

    Bars show the share of examples in each bin; the title gives the expected calibration error (ECE).

    Args:
        predictions: confidences `[N]` in [0, 1], or probabilities of classes `[N, C]`, whose largest is the confidence.
        targets: to confidences, whether each was right `[N]`; to probabilities, the classes `[N]`.
        bins: number of equally wide bins.
        ax: where to draw; by default a new figure.

    Raises:
        ProbqError: if shapes do not fit, numbers are not finite or no probabilities, or a class does not exist.

    Source: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, 2017, "On Calibration of Modern Neural Networks".
    """
    found = reliability_of(predictions, targets, bins)
    ax = new_axes(ax, 3.8)
    edges = np.linspace(0, 100, bins + 1)
    share = 100 * found.counts / found.counts.sum()
    ax.bar(edges[:-1], share, 100 / bins, align="edge", color=PALE, alpha=0.6, edgecolor="white", label="examples")
    ax.plot([0, 100], [0, 100], color=DARK, linewidth=1, linestyle="--", label="calibrated")
    full = found.counts > 0
    x, y = 100 * found.confidence[full], 100 * found.accuracy[full]
    low, high = (100 * end[full] for end in (found.low, found.high))
    ax.vlines(x, low, high, color=WEIGHT, linewidth=1.6, label="94 % interval")
    ax.plot(x, y, "o", color=WEIGHT, markersize=5, clip_on=False, zorder=4, label="accuracy")
    ax.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence in %", ylabel="accuracy, and share of examples, in %")
    legend(ax, *ax.get_legend_handles_labels())
    ax.spines[["top", "right"]].set_visible(False)
    title(ax, f"Reliability of {found.counts.sum():,} predictions: ECE = {100 * found.error:.2g} %")
    return ax
