"""Is a predictive distribution of a number honest? Scores, intervals and coverage tell, on numpy arrays.

Each draw of a network, or member of an ensemble, says `target ~ Normal(mean, variance)`; averaged they say
`target ~ 1/S sum_s Normal(mean_s, variance_s)`, a mixture. `means` are the outputs of the draws, `variances` the
noise of the likelihood: `ensemble.outputs(x)` and `ensemble.noise`, or `q.predict(x)` and
`q.likelihood.log_sd.exp() ** 2`. Both belong to the same unit as the targets.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import logsumexp, ndtr, ndtri

from probq.evaluation.metrics.reliability import share_interval
from probq.evaluation.metrics.uncertainty import numbers
from probq.utils.errors import ProbqError

LEVELS = tuple(k / 20 for k in range(1, 20))
HALVINGS = 64  # of a bracket around a quantile: beyond what float64 resolves


class Scores(NamedTuple):
    """Scores say how well the mixture predicted each target; `probq.calibration.interval(np.mean, score)` how surely.

    Attributes:
        nll: negative log-density at the target in nats, `[n]`. It changes with the unit of the target: by `log c` if
            the numbers get `c` times as large.
        crps: continuous ranked probability score `integral (P(y <= t) - 1[target <= t])^2 dt`, in the unit of the
            target, `[n]`; of a prediction that is sure it is the absolute error.
        pit: probability integral transform `P(y <= target)`, `[n]`; uniform over [0, 1] where predictions are honest.
    """

    nll: np.ndarray
    crps: np.ndarray
    pit: np.ndarray


class Band(NamedTuple):
    """A band holds the ends of a central predictive interval for each example, in the unit of the target, `[n]`."""

    low: np.ndarray
    high: np.ndarray


class Coverage(NamedTuple):
    """Coverage is the share of the targets within their central predictive intervals.

    Attributes:
        levels: what the intervals promise, in (0, 1), `[L]`.
        share: the share of the targets within, `[L]`.
        low, high: ends of the 94 % interval of the share, under Jeffreys' prior, `[L]`.
        width: mean width of the predictive intervals, in the unit of the target, `[L]`.
        n: number of targets.
    """

    levels: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray
    width: np.ndarray
    n: int


def scores(means: Any, variances: Any, targets: Any) -> Scores:
    """Return the scores of the mixture `1/S sum_s Normal(mean_s, variance_s)` at each target.

    Lower `nll` and `crps` are better.

    Args:
        means: predicted by each draw or member, `[draws, n]` or `[draws, n, 1]`.
        variances: of the noise, above 0, in the unit of the means squared; of a shape that broadcasts to that of
            `means`.
        targets: what came, real numbers `[n]` or `[n, 1]`.

    Raises:
        ProbqError: as every function here, if shapes do not fit, as those of a classifier do not, a number is not
            finite, or a variance is not above 0.

    Source: T. Gneiting, A. E. Raftery, 2007, "Strictly Proper Scoring Rules, Prediction, and Estimation"; the closed
    form of the CRPS is from E. P. Grimit, T. Gneiting, V. J. Berrocal, N. A. Johnson, 2006, "The Continuous Ranked
    Probability Score for Circular Variables and its Application to Mesoscale Forecast Ensemble Verification".

    Example:
        >>> found = scores([[0.0]], 1.0, [0.0])
        >>> found.nll.round(4), found.crps.round(4), found.pit
        (array([0.9189]), array([0.2337]), array([0.5]))
    """
    means, variances = _mixture(means, variances)
    y = _targets(targets, means.shape[1])
    z = (y - means) / np.sqrt(variances)
    log_density = logsumexp(-(z**2) / 2 - np.log(2 * np.pi * variances) / 2, axis=0) - np.log(len(means))
    spread = np.mean([_distance(means - m, variances + v).mean(0) for m, v in zip(means, variances, strict=True)], 0)
    return Scores(-log_density, _distance(y - means, variances).mean(0) - spread / 2, ndtr(z).mean(0))


def band(means: Any, variances: Any, level: float = 0.9) -> Band:
    """Return the central predictive intervals of the mixture, from its quantile `(1 - level) / 2` to `(1 + level) / 2`.

    Args:
        means: as in `scores`.
        variances: as in `scores`.
        level: probability within the interval, in (0, 1).

    Example:
        >>> low, high = band([[0.0]], 4.0, level=0.95)
        >>> low.round(2), high.round(2)
        (array([-3.92]), array([3.92]))
    """
    (level,) = _levels([level])
    means, variances = _mixture(means, variances)
    return _band(means, np.sqrt(variances), level)


def coverage(means: Any, variances: Any, targets: Any, levels: Sequence[float] = LEVELS) -> Coverage:
    """Return how many targets lie within their central predictive intervals, and how wide these are.

    Where predictions are honest, the share is the level. A share of few targets is itself uncertain: see `low` and
    `high`, which take the targets for independent. Among honest predictions narrow ones are better.

    Args:
        means: as in `scores`.
        variances: as in `scores`.
        targets: as in `scores`.
        levels: what the intervals promise, in (0, 1); by default 5 % to 95 % in steps of 5 %.

    Source: T. Gneiting, F. Balabdaoui, A. E. Raftery, 2007, "Probabilistic Forecasts, Calibration and Sharpness";
    L. D. Brown, T. T. Cai, A. DasGupta, 2001, "Interval Estimation for a Binomial Proportion".

    Example:
        >>> found = coverage([[0.0, 0.0, 0.0, 0.0]], 1.0, [0.1, -0.5, 1.0, -3.0], levels=[0.5, 0.9])
        >>> found.share, found.width.round(2)
        (array([0.5 , 0.75]), array([1.35, 3.29]))
    """
    promised = _levels(levels)
    means, variances = _mixture(means, variances)
    sd, y = np.sqrt(variances), _targets(targets, means.shape[1])
    bands = [_band(means, sd, level) for level in promised]
    hits = np.array([((low <= y) & (y <= high)).sum() for low, high in bands])
    width = np.array([(high - low).mean() for low, high in bands])
    return Coverage(promised, hits / len(y), *share_interval(hits, len(y)), width, len(y))


def _distance(shift: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return `E|d|` of `d ~ Normal(shift, variance)`."""
    sd = np.sqrt(variance)
    z = shift / sd
    return np.asarray(2 * sd * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) + shift * (2 * ndtr(z) - 1))


def _band(means: np.ndarray, sd: np.ndarray, level: float) -> Band:
    return Band(*(_quantile(means, sd, (1 + sign * level) / 2) for sign in (-1, 1)))


def _quantile(means: np.ndarray, sd: np.ndarray, p: float) -> np.ndarray:
    """Return the quantile of the mixture, by bisection between the least and the greatest of its parts' quantiles."""
    parts = means + ndtri(p) * sd
    low, high = parts.min(0), parts.max(0)
    for _ in range(HALVINGS if len(means) > 1 else 0):
        middle = (low + high) / 2
        below = ndtr((middle - means) / sd).mean(0) < p
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.asarray((low + high) / 2)


def _mixture(means: Any, variances: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the means and variances, both `[draws, n]`."""
    if variances is None:
        raise ProbqError("variances is None, as the noise of an ensemble of classifiers; use probq.calibration there")
    means, variances = numbers(means, "means"), numbers(variances, "variances")
    if means.ndim not in (2, 3) or 0 in means.shape or means.shape[2:] not in ((), (1,)):
        raise ProbqError(
            f"means must have the shape [draws, n] or [draws, n, 1], not {list(means.shape)}; of several outputs take "
            "one at a time, means[..., k]; for probabilities of classes use probq.calibration"
        )
    if not (variances > 0).all():
        raise ProbqError("variances must be above 0; give squares of the noise's standard deviation")
    try:
        spread = np.broadcast_to(variances, means.shape)
    except ValueError as error:
        raise ProbqError(
            f"variances of shape {list(variances.shape)} do not fit means of shape {list(means.shape)}"
        ) from error
    return means.reshape(means.shape[:2]), spread.reshape(means.shape[:2])


def _targets(targets: Any, n: int) -> np.ndarray:
    y = numbers(targets, "targets")
    if y.shape not in ((n,), (n, 1)):
        raise ProbqError(
            f"targets must have the shape [{n}], one real number for each prediction, not {list(y.shape)}; means are "
            "[draws, n], the draws first; for classes use probq.calibration"
        )
    return y.reshape(n)


def _levels(levels: Any) -> np.ndarray:
    promised = numbers(levels, "levels")
    if promised.ndim != 1 or not promised.size or not ((promised > 0) & (promised < 1)).all():
        raise ProbqError(f"a level is the probability within an interval, between 0 and 1 (0.9 for 90 %), not {levels}")
    return promised
