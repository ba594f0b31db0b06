"""The trend of the bound tells whether it has settled by the end of a search."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import theilslopes

from probq.training.svi.history import History

BLOCKS = 20  # in the window; fewer than LEAST_STEPS each are too noisy to tell a trend
LEAST_STEPS = 5
LEVEL = 0.99
MOST_SHARE = 0.2


class BoundTrend(NamedTuple):
    """A trend says how the bound still moved at the end of a search.

    Attributes:
        change: of the negative ELBO for one example over the last third, in nats; negative while it improves.
        low, high: 99 % interval of that change.
        passed: range that the bound passed through in the whole search, in nats.
    """

    change: float
    low: float
    high: float
    passed: float

    @property
    def settled(self) -> bool:
        """Return whether the change may be none, or is less than a fifth of the range passed through."""
        return self.low <= 0 <= self.high or abs(self.change) <= MOST_SHARE * self.passed


def bound_trend(bound: Sequence[float]) -> BoundTrend | None:
    """Return the change of the bound over a search's last third, by the median of slopes between means of 20 blocks.

    The median of pairwise slopes stands outliers in up to 29 % of the blocks. None in searches below 300 steps, which
    are too short to tell a trend from noise. Of searches without any trend about one in a hundred seems to have one.

    Args:
        bound: negative ELBO of each step of the search for one example in nats, without the budget's term.

    Source: P. K. Sen, 1968, "Estimates of the Regression Coefficient Based on Kendall's Tau".
    """
    values = np.asarray(bound, dtype=float)
    size = len(values) // (3 * BLOCKS)
    if size < LEAST_STEPS:
        return None
    means = values[len(values) % size :].reshape(-1, size).mean(1)
    slope, _, low, high = theilslopes(means[-BLOCKS:], alpha=LEVEL)
    return BoundTrend(slope * (BLOCKS - 1), low * (BLOCKS - 1), high * (BLOCKS - 1), float(np.ptp(means)))


def warn_unsettled(history: History, stacklevel: int = 3) -> None:
    """Warn if the bound had not settled when the search of a fit ended; says what to do."""
    searched = [step.nll + step.kl for step in history.steps if step.phase == "search"]
    found = bound_trend(searched)
    if found is None or found.settled:
        return
    way = "fell" if found.change < 0 else "rose"
    advice = "more would improve it" if found.change < 0 else "the budget still bites"
    warnings.warn(
        f"the bound had not settled: over the last third of the search it {way} by {abs(found.change):.3g} nats, of "
        f"{found.passed:.3g} that it passed through; {advice}. Fit longer (epochs), give the search a larger share "
        "(search=...), or see history.plot()",
        UserWarning,
        stacklevel=stacklevel,
    )
