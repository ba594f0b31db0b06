"""A power of two becomes the scale of numbers by their range, their squared error or a histogram's divergence."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import entropy
from torch import Tensor

from probq.codebooks import Grid
from probq.codebooks.rounding.nearest import all_levels, nearest_level
from probq.codebooks.rounding.scales import LEAST_SIZE, check_size, thinned
from probq.codebooks.rounding.vectors import Vectors

METHODS = ("minmax", "percentile", "mse", "kl")
FINER = 8  # powers of two below the one that clips nothing, among which is searched
BINS = 2048


@torch.no_grad()
def log2_range(sample: Tensor, levels: Grid | Vectors | Tensor, method: str, percentile: float = 100) -> int:
    """Return the exponent of the power of two that a method chooses as the scale of numbers.

    Args:
        sample: the numbers, at least one.
        levels: the levels of the codebook.
        method: one of `METHODS`, as in `probq.ptq.ranges`.
        percentile: share of the numbers on either side that the method of this name keeps, in percent.

    Raises:
        ProbqError: if a number is too large.
    """
    numbers = sample.detach().reshape(-1)
    check_size(numbers)
    table = all_levels(levels).detach().double()
    if method == "percentile":
        low, high = np.percentile(numbers.cpu().numpy(), [100 - percentile, percentile])
        return covering(low, high, table)
    top = covering(float(numbers.min()), float(numbers.max()), table)
    if method == "minmax":
        return top
    if method == "mse":
        part = thinned(numbers)
        losses = [squared_error(part, levels, 2.0 ** (top - k)) for k in range(FINER)]
    else:
        counts, centres = histogram(numbers)
        losses = [divergence(counts, centres, table, 2.0 ** (top - k)) for k in range(FINER)]
    return top - int(np.argmin(losses))  # the coarsest of equal ones


def covering(low: float, high: float, table: Tensor) -> int:
    """Return the exponent of the least power of two times levels that reaches from the lowest number to the highest.

    A side without levels is not looked at; where nothing is left, the range is taken as 1.
    """
    ends = ((high, float(table.max())), (low, float(table.min())))
    sizes = [number / level for number, level in ends if level and number / level >= LEAST_SIZE]
    return math.ceil(math.log2(max(sizes, default=1.0)))


def squared_error(numbers: Tensor, levels: Grid | Vectors | Tensor, scale: float) -> float:
    """Return the sum of squares of what rounding changes."""
    return float((numbers - scale * nearest_level(numbers / scale, levels)).double().square().sum())


def histogram(numbers: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts and centres of bins over all numbers but zeros, which every scale leaves as they are."""
    values = numbers.double().cpu().numpy()
    counts, edges = np.histogram(values[values != 0], BINS, (min(values.min(), 0.0), max(values.max(), 0.0)))
    return counts, (edges[1:] + edges[:-1]) / 2


def divergence(counts: np.ndarray, centres: np.ndarray, table: Tensor, scale: float) -> float:
    """Return `KL(clipped || rounded)` of a histogram in nats, infinite where nothing is within the levels' range.

    Clipped, what is out of range is in the outermost bins within; rounded, what a level takes of the rest is spread
    over the bins that are not empty there.
    """
    inside = np.flatnonzero((centres >= scale * float(table.min())) & (centres <= scale * float(table.max())))
    if not inside.size:
        return math.inf
    own = counts[inside].astype(float)
    clipped = own.copy()
    clipped[0] += counts[: inside[0]].sum()
    clipped[-1] += counts[inside[-1] + 1 :].sum()
    cells = torch.bucketize(torch.as_tensor(centres[inside] / scale), (table[1:] + table[:-1]) / 2, right=True).numpy()
    filled = np.bincount(cells[clipped > 0], minlength=len(table))
    rounded = np.bincount(cells, own, len(table)) / np.maximum(filled, 1)
    total = own.sum() and clipped.sum()
    return float(entropy(clipped, np.where(clipped > 0, rounded[cells], 0))) if total else math.inf
