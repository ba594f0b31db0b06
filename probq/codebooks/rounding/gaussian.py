"""The scale that suits a normal law follows from the codebook alone."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import norm

REACHES = np.geomspace(0.25, 16, 25)  # standard deviations that the farthest level may stand for


def gaussian_scale(levels: np.ndarray) -> float:
    """Return the scale `s` of least mean squared rounding error of a standard normal number:

        s = argmin E[(X - s nearest(X / s))^2],    X ~ N(0, 1).

    A codebook without negative levels gets the one that suits `|X|`, since what rounds to 0 does so at every scale. The
    levels `{0}` have the scale 1.

    Args:
        levels: ascending, `[K]`.

    Source: J. Max, 1960, "Quantizing for Minimum Distortion" (uniform levels between halves: 1.596, 0.996, 0.586 and
    0.335 at 1 to 4 bits).

    Example:
        >>> round(gaussian_scale(np.array([-1.5, -0.5, 0.5, 1.5])), 4)
        0.9957
    """
    farthest = float(np.abs(levels).max())
    if farthest == 0:
        return 1.0
    errors = [gaussian_error(reach / farthest, levels) for reach in REACHES]
    best = int(np.clip(np.argmin(errors), 1, len(REACHES) - 2))
    ends = np.log(REACHES[[best - 1, best + 1]] / farthest)
    found = minimize_scalar(lambda log: gaussian_error(np.exp(log), levels), bounds=ends, method="bounded")
    return float(np.exp(found.x))


def gaussian_error(scale: float, levels: np.ndarray) -> float:
    """Return `E[(X - s nearest(X / s))^2]` of a standard normal number, from its mass and mean in each cell."""
    values = scale * levels
    ends = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
    mass, mean = np.diff(norm.cdf(ends)), -np.diff(norm.pdf(ends))
    return float(1 - 2 * (values * mean).sum() + (values**2 * mass).sum())
