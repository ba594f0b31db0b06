"""This picture shows the widths of an integer model along its depth."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from probq.integer import IntegerModel
from probq.integer.layer_table import layers_of
from probq.plot.common.style import CROWDED, INPUT, WEIGHT, legend, name_columns, new_axes, title
from probq.utils.errors import ProbqError

ACCUMULATOR = "#555555"


def integers(model: IntegerModel, ax: Axes | None = None) -> Axes:
    """Plot the bits of weights, inputs and accumulators of an integer model, layer for layer along its depth.

    Args:
        model: an integer model.
        ax: where to draw; by default a new figure.

    Raises:
        ProbqError: if the model has no layer.
    """
    layers = layers_of(model)
    if not layers:
        raise ProbqError("the integer model has no linear, convolution or embedding layer to draw")
    ax = new_axes(ax, 3.2)
    columns, shown = np.arange(len(layers)), "" if len(layers) > CROWDED else "o"
    for label, colour, style, thickness, values in (  # the thick line shows beside the thin one where both are equal
        ("accumulator", ACCUMULATOR, ":", 1.5, [layer.accumulator_bits for layer in layers]),
        ("input", INPUT, "-", 3.5, [layer.input_bits for layer in layers]),
        ("weight", WEIGHT, "-", 1.5, [layer.weight_bits for layer in layers]),
    ):
        heights = np.array([np.nan if value is None else value for value in values], dtype=float)
        if np.isfinite(heights).any():
            look: dict[str, Any] = {"linewidth": thickness, "marker": shown, "markersize": 4 + 1.5 * thickness}
            ax.plot(columns, heights, style, color=colour, drawstyle="steps-mid", label=label, **look)
    ax.set(ylabel="width in bits")
    ax.set_ylim(bottom=-0.4)
    ax.grid(axis="y", color="#dddddd", linewidth=0.7)
    ax.spines[["top", "right"]].set_visible(False)
    name_columns(ax, [layer.name for layer in layers])
    legend(ax, *ax.get_legend_handles_labels())
    title(ax, f"Widths of {len(layers)} integer layer{'s'[: len(layers) != 1]}")
    return ax
