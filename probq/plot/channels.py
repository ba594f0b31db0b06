"""A heat map shows the widths of channels."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from probq.evaluation.diagnostics import width_draws
from probq.network.program.program import Program, check_posterior
from probq.network.quantizers.weight import WeightQuantizer
from probq.plot.common.style import height_of, name_rows, new_axes, shortened, title
from probq.utils.errors import ProbqError


def channels(q: Program, ax: Axes | None = None) -> Axes:
    """Plot the mean width in bits of every output channel, a row for each layer with widths of channels or weights.

    All rows are equally long, so that layers of 16 and of 512 channels can be compared; the number of channels stands
    behind the name. Where each weight has its own width, the mean over a channel's weights is shown.

    Args:
        q: a quantized network, fitted or not.
        ax: where to draw; by default a new figure.

    Raises:
        ProbqError: if every weight tensor has one width only, or gates hold NaN.
    """
    check_posterior(q, "plot.channels")
    rows = {name: channel_means(q, name) for name in width_draws.network_order(q) if name in q.weight_names}
    rows = {name: means for name, means in rows.items() if q.quantizer(name).gates}
    if not rows:
        raise ProbqError('all channels of a tensor share one width; quantize with Plan(gates="channel") to draw this')
    bits = [b for name in rows for b in q.quantizer(name).ladder.bits]
    ax, scale = new_axes(ax, height_of(len(rows))), Normalize(min(bits), max(bits))
    for row, means in enumerate(rows.values()):
        edges = np.linspace(0, 100, len(means) + 1)
        mesh = ax.pcolormesh(
            edges, [row - 0.42, row + 0.42], means[None], cmap="viridis_r", norm=scale, rasterized=len(means) > 64
        )
    name_rows(ax, [f"{shortened(name)} ({len(means)})" for name, means in rows.items()])
    ax.set(xlim=(0, 100), xlabel="output channels, in % of the layer's")
    bar = ax.figure.colorbar(mesh, ax=ax, shrink=min(1.0, 3 / height_of(len(rows))), pad=0.02)
    bar.set_label("mean width in bits")
    title(ax, "Expected width of each output channel")
    return ax


def channel_means(q: Program, name: str) -> np.ndarray:
    """Return the expected width of each output channel of a weight in bits, `[channels]`, or one number for all."""
    quantizer = q.quantizer(name)
    means = width_draws.probabilities(q, name) @ np.array(quantizer.ladder.bits)
    if isinstance(quantizer, WeightQuantizer) and quantizer.gates and quantizer.gates == quantizer.shape:
        means = np.moveaxis(means.reshape(quantizer.shape), quantizer.channel_axis, 0)
        return means.reshape(len(means), -1).mean(1)
    return means
