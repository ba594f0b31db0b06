"""This picture shows weights against the levels they will take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes

from probq.codebooks.rounding.nearest import all_levels
from probq.evaluation.diagnostics import width_draws
from probq.network.program.decided_codes import rung_onehots
from probq.network.program.program import Program, check_posterior
from probq.plot.common.style import DARK, PALE, WEIGHT, bits_text, legend, new_axes, shortened, title
from probq.utils.errors import ProbqError
from probq.utils.numbers import exact_number

FEW, MANY = 16, 64  # levels up to which each is named, and from which they are drawn as one outline
FINE = 4  # bins for each level
MOST_BINS = 512


@dataclass(frozen=True)
class LevelShares:
    """The weights of one tensor in steps of their scale have these shares of its levels at one width.

    Attributes:
        bits: the width.
        values: weights in units of the scale `[weights]`.
        levels: the levels of the codebook, ascending `[K]`.
        expected: expected share of weights on each level under the codes' law `[K]`.
        decided: share of weights on each level once codes are decided `[K]`.
        part: share of the tensor's weights that have this width.
    """

    bits: float
    values: np.ndarray
    levels: np.ndarray
    expected: np.ndarray
    decided: np.ndarray
    part: float


def level_shares(q: Program, name: str) -> LevelShares:
    """Return what `weights` draws, at the width decided within `q.budget` (that of most weights, where they differ)."""
    widths = width_draws.decided_widths(q, q.budget)
    quantizer = q.weights[name]
    with torch.no_grad(), q.evaluating():
        rung = q.rung(name, rung_onehots(q, widths)[name])
        location = q.location(name, rung)
        if not location.isfinite().all():
            raise ProbqError(f"the weight {name} holds NaN or infinity; fit again from the start, with lower rates")
        law = quantizer.law(location, rung)
        windows, log_probs = (t.double().cpu().numpy() for t in law.window())
        modes, values = law.mode.double().cpu().numpy(), (location / rung.scale).double().cpu().numpy()
    bits = np.broadcast_to(np.asarray(widths[name]).reshape(quantizer.gates), quantizer.shape)
    found, counts = np.unique(bits, return_counts=True)
    chosen = exact_number(found[counts.argmax()])
    here = bits == chosen
    own = quantizer.levels(quantizer.ladder.bits.index(chosen))
    levels = np.sort(all_levels(own).detach().double().cpu().numpy())
    probs = np.exp(log_probs[here])
    expected = _counts(levels, windows[here].reshape(-1), probs.reshape(-1)) / here.sum()
    decided = _counts(levels, modes[here]) / here.sum()
    return LevelShares(chosen, values[here], levels, expected, decided, float(here.mean()))


def _counts(levels: np.ndarray, values: np.ndarray, masses: np.ndarray | None = None) -> np.ndarray:
    """Return the mass of the values on each level."""
    place = np.searchsorted((levels[1:] + levels[:-1]) / 2, values)
    return np.bincount(place, masses, len(levels))


def weights(q: Program, name: str | None = None, ax: Axes | None = None) -> Axes:
    """Plot the histogram of a tensor's weights over its decided codebook's levels, with the probabilities of the codes.

    Weights are in units of their scale, so that all channels share one axis. Grey: weights before rounding, for each
    step between levels; beyond the levels, the outermost thousandth of them is left out. Blue: expected share of each
    level under the law of the codes. Dots, or a dark line: share once decided.

    Args:
        q: a quantized network with its network, fitted or not.
        name: the name of the weight, as `conv1.weight`; by default the largest one.
        ax: where to draw; by default a new figure.

    Raises:
        ProbqError: if there is no such weight, it holds NaN or infinity, or the posterior was read without its network.
    """
    check_posterior(q, "plot.weights")
    if name is None:
        name = max(q.weight_names, key=lambda n: int(np.prod(q.weights[n].shape)))
    if name not in q.weight_names:
        raise ProbqError(f"there is no quantized weight {name!r}; name one of {', '.join(q.weight_names[:5])}")
    if name not in dict(q.net.named_parameters(remove_duplicate=False)):
        raise ProbqError(f"the posterior was read without its network, so {name} is unknown; use probq.load(path, net)")
    shares = level_shares(q, name)
    ax = new_axes(ax, 3.2)
    _draw(ax, shares)
    part = "" if shares.part == 1 else f", {100 * shares.part:.3g} % of its weights"
    title(ax, f"{shortened(name)} on its levels at {bits_text(shares.bits)}{part}")
    return ax


def _draw(ax: Axes, shares: LevelShares) -> None:
    levels = shares.levels
    step = float(np.diff(levels).mean()) if len(levels) > 1 else 1.0
    outer = np.quantile(shares.values, [0.0005, 0.9995])
    low, high = min(levels[0], outer[0]) - step / 2, max(levels[-1], outer[1]) + step / 2
    bins = int(np.clip(FINE * (high - low) / step, 8, MOST_BINS))
    counts, edges = np.histogram(shares.values, np.linspace(low, high, bins + 1))
    density = counts / (len(shares.values) * np.diff(edges))
    ax.stairs(density * step, edges, fill=True, color="#bbbbbb", label="weights before rounding,\nper step")
    if len(levels) <= MANY:
        distance = np.diff(levels).min() if len(levels) > 1 else step
        ax.bar(levels, shares.expected, 0.8 * distance, color=PALE, alpha=0.75, edgecolor=WEIGHT, label="code law")
        ax.plot(levels, shares.decided, "o", color=DARK, markerfacecolor="white", markersize=5, label="decided codes")
    else:
        middles = (levels[1:] + levels[:-1]) / 2
        bounds = np.concatenate([[levels[0] - step / 2], middles, [levels[-1] + step / 2]])
        ax.stairs(shares.expected, bounds, fill=True, color=PALE, alpha=0.75, label="code law")
        ax.stairs(shares.decided, bounds, color=DARK, linewidth=0.6, label="decided codes")
    if (high - low) / step <= FEW:
        ax.set_xticks(levels, [f"{level:g}".replace("-", "−") for level in levels], fontsize=9)
    ax.set(xlabel="weight in units of its scale", ylabel="share of weights")
    ax.set_ylim(0, 1.08 * max(shares.expected.max(), shares.decided.max(), (density * step).max()))
    ax.spines[["top", "right"]].set_visible(False)
    legend(ax, *ax.get_legend_handles_labels())
