"""The drawings of docs/ideas, as SVG files that read well on light and on dark pages.

python docs/pictures/ideas.py
"""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from probq import codebooks
from probq.network.distributions.codes import Codes

FOLDER = Path(__file__).parent
GREY, BLUE, ORANGE, GREEN = "#7a7a7a", "#3f7fbf", "#c9691e", "#3c8d5a"  # of middle brightness: no background is given
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "probq", "font.family": "sans-serif", "font.size": 9.5,
    "text.color": GREY, "axes.labelcolor": GREY, "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
    "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none", "figure.facecolor": "none",
    "legend.frameon": False, "axes.prop_cycle": mpl.cycler(color=[BLUE, ORANGE, GREEN]),
}  # fmt: skip


def bare(width: float, height: float) -> Axes:
    """Axes without axes, in units of a tenth of an inch."""
    ax = plt.figure(figsize=(width, height)).add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 10 * width), ylim=(10 * height, 0))
    ax.axis("off")
    return ax


def box(ax: Axes, x: float, y: float, width: float, height: float, text: str, colour: str = BLUE) -> None:
    """A rounded box with text in its middle."""
    style = "round,pad=0,rounding_size=0.8"
    ax.add_patch(FancyBboxPatch((x, y), width, height, style, facecolor="none", edgecolor=colour, linewidth=1.4))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=colour)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = GREY) -> None:
    """From one point to another."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.2})


def path() -> None:
    """What probq makes of a network, from top to bottom."""
    ax = bare(4.7, 4.0)
    steps = (
        ("network", "", "trained, 32-bit floats"),
        ("posterior", "quantize, fit", "P(width) of each tensor,\nP(code) of each weight"),
        ("decision", "mode, sample", "one width for each tensor,\none code for each weight"),
        ("integer model", "lower", "integers only, accumulators proven"),
        ("artefact", "write, verify", "ONNX, C, FPGA; the same integers"),
    )
    for k, (name, verb, note) in enumerate(steps):
        y = 1 + 8.4 * k
        box(ax, 0.6, y, 13, 4, name)
        ax.text(15.5, y + 2, note, va="center")
        if verb:
            arrow(ax, (7, y - 4.4), (7, y))
            ax.text(8.2, y - 2.2, verb, va="center", color=ORANGE)


def books() -> None:
    """Levels of codebooks on one axis."""
    rows = (
        ("pruned, 0 bits", codebooks.pruned()), ("binary, 1 bit", codebooks.binary()),
        ("ternary, 2 bits", codebooks.ternary()), ("uniform, 3 bits", codebooks.uniform(3)),
        ("unsigned, 2 bits", codebooks.uniform(2, signed=False)), ("powers of two, 3 bits", codebooks.powers_of_two(3)),
        ("own levels, 2 bits", codebooks.levels((-2.5, -0.5, 0.5, 2.5))),
    )  # fmt: skip
    _, ax = plt.subplots(layout="constrained", figsize=(4.7, 2.6))
    for k, (_, book) in enumerate(rows):
        values = book.levels().numpy()
        ax.plot([-4.5, 4.5], [k, k], color=GREY, linewidth=0.5)
        ax.plot(values, np.full(len(values), k), "o", color=BLUE, markersize=6)
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlim=(-4.5, 4.5), xlabel="level, in steps of the scale")
    ax.set_yticks(range(len(rows)), [name for name, _ in rows])
    ax.tick_params(left=False)
    ax.spines["left"].set_visible(False)


def gates() -> None:
    """The chain of gates of a ladder with four rungs, and the law of the width that it gives."""
    ax = bare(4.7, 1.9)
    opened = (0.95, 0.7, 0.2)
    reached = np.cumprod((1, *opened))
    widths = reached * (1 - np.array((*opened, 0)))
    for k, (bits, probability) in enumerate(zip((1, 2, 4, 8), widths, strict=True)):
        x = 1 + 12.2 * k
        box(ax, x, 7, 8, 3.4, f"{bits} bit" + "s" * (bits > 1))
        ax.text(x + 4, 13, f"{probability:.3f}", ha="center", va="center")
        ax.add_patch(plt.Rectangle((x, 17.5), 8, -3 * probability - 0.15, color=BLUE))
        if k < 3:
            arrow(ax, (x + 8.2, 8.7), (x + 12, 8.7), ORANGE)
            ax.text(x + 10.1, 4.6, f"open\n{opened[k]}", ha="center", va="center", color=ORANGE)
    ax.text(1, 1.4, "gate k: go one rung up?", color=ORANGE, va="center")


def codes() -> None:
    """Probability of the upper of two levels, by where the weight lies between them."""
    _, ax = plt.subplots(layout="constrained", figsize=(4.7, 2.3))
    place = torch.linspace(0, 0.999, 301)  # at 1 the next pair of levels begins
    for spread in (0.02, 0.1, 0.3):
        law = Codes(place, torch.tensor(1.0), codebooks.uniform(4), torch.tensor(spread), nearest=2)
        ax.plot(place, law.mean, label=f"spread {spread}")
    ax.set(xlabel="location of the weight, in steps", ylabel="P(upper level)", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    ax.set_xticklabels(["lower level", "midpoint", "upper level"])
    ax.legend(loc="upper left")


def temperature() -> None:
    """The exact tempered law of one width, where losses for one example are given."""
    _, ax = plt.subplots(layout="constrained", figsize=(4.7, 2.5))
    losses, examples = np.array((0.330, 0.304, 0.3002, 0.3000)), 1000
    scale = np.geomspace(1e-3, 1e2, 200)
    energies = -losses * examples / scale[:, None]
    law = np.exp(energies - energies.max(1, keepdims=True))
    law /= law.sum(1, keepdims=True)
    for k, (bits, colour) in enumerate(zip((1, 2, 4, 8), (GREY, GREEN, ORANGE, BLUE), strict=True)):
        ax.plot(scale, law[:, k], color=colour, label=f"{bits} bit" + "s" * (bits > 1))
    ax.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    ax.set(xscale="log", xlabel="temperature", ylabel="P(width)", ylim=(-0.02, 1.02), yticks=(0, 0.5, 1))
    ax.legend(loc="center right", bbox_to_anchor=(0.46, 0.6))


def knowledge() -> None:
    """Rank correlations with the loss after training of what might know which widths are best."""
    rows = (
        ("cost alone", (-0.05, 0.32, 0.20)), ("fitted posterior", (0.29, 0.32, 0.17)),
        ("measured loss", (0.64, 0.59, 0.34)), ("additive sensitivity", (0.68, 0.40, 0.45)),
        ("truth of another seed", (0.85, 0.72, 0.51)),
    )  # fmt: skip
    _, ax = plt.subplots(layout="constrained", figsize=(4.7, 2.3))
    tasks = ("convolutions, 0.6 %", "convolutions, 1.6 %", "perceptron, 1.5 %")
    for task, name, marker in zip(range(3), tasks, "osD", strict=True):
        ax.plot([found[task] for _, found in rows], range(len(rows)), marker, label=name)
    ax.set_yticks(range(len(rows)), [name for name, _ in rows])
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlim=(-0.1, 1), xlabel="Kendall's rank correlation with the truth")
    ax.grid(axis="y", color=GREY, linewidth=0.3)
    ax.axvline(0, color=GREY, linewidth=0.6)
    ax.legend(loc="upper right", fontsize=8.5, borderpad=0, handletextpad=0.1)


WIDTHS = (1, 2, 4, 8)
LAWS = np.array(
    ((0.02, 0.18, 0.70, 0.10), (0.25, 0.55, 0.18, 0.02), (0.10, 0.30, 0.45, 0.15), (0.02, 0.10, 0.28, 0.60))
)
MACS = np.array((1.0, 6.0, 4.0, 0.5))  # of four layers, with inputs of 4 bits
LIMIT = 145.0


def choices() -> tuple[np.ndarray, np.ndarray]:
    """Cost and probability of every choice of widths of a posterior over four tensors."""
    every = list(itertools.product(range(4), repeat=4))
    cost = np.array([sum(m * 4 * WIDTHS[k] for m, k in zip(MACS, chosen, strict=True)) for chosen in every])
    return cost, np.array([np.prod([LAWS[t, k] for t, k in enumerate(chosen)]) for chosen in every])


def budget() -> None:
    """Costs of draws around a limit that their expectation keeps."""
    cost, probability = choices()
    _, ax = plt.subplots(layout="constrained", figsize=(4.7, 2.5))
    edges = np.arange(45, 335, 10)
    height, _ = np.histogram(cost, edges, weights=probability)
    inside = edges[:-1] < LIMIT
    ax.bar(edges[:-1][inside], height[inside], 9, align="edge", color=BLUE)
    ax.bar(edges[:-1][~inside], height[~inside], 9, align="edge", facecolor="none", edgecolor=ORANGE)
    ax.axvline(LIMIT, color=ORANGE, linewidth=1.5)
    kept = probability[cost <= LIMIT].sum()
    ax.text(LIMIT + 6, height.max() * 1.05, f"limit; {100 * kept:.0f} % of draws keep it", color=ORANGE, va="center")
    expected = float(cost @ probability)
    ax.plot(expected, -0.03 * height.max(), "^", color=GREEN, markersize=8, clip_on=False)
    ax.text(200, height.max() * 0.8, f"triangle: E[cost] = {expected:.0f}", color=GREEN, va="center")
    ax.set(xlabel="cost of a draw", ylabel="probability", yticks=(), xlim=(40, 300), ylim=(0, height.max() * 1.15))


def decision() -> None:
    """Every choice of widths by cost and probability, and which one is decided on."""
    cost, probability = choices()
    _, ax = plt.subplots(layout="constrained", figsize=(4.7, 2.7))
    inside = cost <= LIMIT
    ax.plot(cost[inside], np.log(probability[inside]), "o", color=BLUE, markersize=3)
    ax.plot(cost[~inside], np.log(probability[~inside]), "o", markerfacecolor="none", markeredgecolor=GREY,
            markersize=3)  # fmt: skip
    best = np.argmax(np.where(inside, probability, 0))
    ax.plot(cost[best], np.log(probability[best]), "o", markersize=11, markerfacecolor="none", markeredgecolor=ORANGE,
            markeredgewidth=2)  # fmt: skip
    ax.annotate("the mode within the limit", (cost[best], np.log(probability[best])), (168, -0.6), color=ORANGE,
                va="center", arrowprops={"arrowstyle": "-", "color": ORANGE, "shrinkB": 8})  # fmt: skip
    ax.axvline(LIMIT, color=ORANGE, linewidth=1)
    ax.set(xlabel="cost", ylabel="log P(widths), nats", xlim=(40, 300), ylim=(-12, 0))


def integers() -> None:
    """One layer in integers, from top to bottom."""
    ax = bare(4.7, 3.6)
    rows = (
        ("x", "integers, such as 0 .. 15 at 4 bits", BLUE),
        ("acc = Σ w x + b", "at most 31 bits, proven for all inputs", BLUE),
        ("acc · m", "m = 1 (shift) or 16 .. 31 (dyadic)", ORANGE),
        ("(· + half) >> n", "rounds half up", ORANGE),
        ("clip to lo .. hi", "the ReLU, too", ORANGE),
        ("next x", "integers of the next layer's width", BLUE),
    )
    for k, (text, note, colour) in enumerate(rows):
        y = 0.8 + 5.9 * k
        box(ax, 0.6, y, 14, 3.8, text, colour)
        ax.text(16.5, y + 1.9, note, va="center")
        if k:
            arrow(ax, (7.6, y - 2.1), (7.6, y))


DRAWINGS = (path, books, gates, codes, temperature, knowledge, budget, decision, integers)

if __name__ == "__main__":
    mpl.use("agg")
    with mpl.rc_context(STYLE):
        for draw in DRAWINGS:
            draw()
            own = {"Date": None, "Creator": None}
            plt.savefig(FOLDER / f"{draw.__name__}.svg", transparent=True, metadata=own)
            plt.close("all")
