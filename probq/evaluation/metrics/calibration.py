"""Is a predictive distribution of a class honest? Scores, calibration, rejection and shift tell, on numpy arrays.

`interval` gives any metric a bootstrap interval, also those of numbers (`probq.regression`).
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import DegenerateDataWarning, bootstrap, mannwhitneyu

from probq.evaluation.metrics.reliability import Reliability, reliability_of
from probq.evaluation.metrics.uncertainty import check_probabilities, numbers
from probq.utils.arguments import check_seed, is_count
from probq.utils.errors import ProbqError


class Interval(NamedTuple):
    """This is a metric with a bootstrap interval."""

    value: float
    low: float
    high: float


class Rejection(NamedTuple):
    """This is the accuracy when the most uncertain examples are left to somebody else.

    Attributes:
        rejected: share of the examples that are rejected, ascending `[n]`, from 0.
        accuracy: on the rest, `[n]`.
        area: mean accuracy over all shares.
    """

    rejected: np.ndarray
    accuracy: np.ndarray
    area: float


def negative_log_likelihood(probs: Any, labels: Any) -> float:
    """Return `-mean log p(label)` in nats; infinite where a label was given probability 0.

    Args:
        probs: predicted probabilities, `[n, classes]`.
        labels: right classes, integers `[n]`.

    Raises:
        ProbqError: as every function here, if an argument has the wrong shape, is no probability or class, or holds
            NaN; the message names it.

    Example:
        >>> round(negative_log_likelihood([[0.5, 0.5], [0.25, 0.75]], [0, 1]), 4)
        0.4904
    """
    probs, labels = _checked(probs, labels)
    with np.errstate(divide="ignore"):
        return float(-np.log(probs[np.arange(len(labels)), labels]).mean())


def brier(probs: Any, labels: Any) -> float:
    """Return the Brier score `mean_i sum_k (p_ik - 1[k = label_i])^2`, from 0 (right and sure) to 2 (wrong and sure).

    Args:
        probs: predicted probabilities, `[n, classes]`.
        labels: right classes, integers `[n]`.

    Source: G. W. Brier, 1950, "Verification of Forecasts Expressed in Terms of Probability".

    Example:
        >>> brier([[0.5, 0.5], [0.0, 1.0]], [0, 1])
        0.25
    """
    probs, labels = _checked(probs, labels)
    return float(((probs - np.eye(probs.shape[1])[labels]) ** 2).sum(1).mean())


def reliability(probs: Any, labels: Any, bins: int = 15) -> Reliability:
    """Return the confidence and accuracy of the predicted class in bins of confidence.

    The bins are equally wide over [0, 1] and closed on the right: bin `b` of `B` holds confidences in
    `((b - 1) / B, b / B]`. Ties for the largest probability go to the first class.

    Args:
        probs: predicted probabilities, `[n, classes]`.
        labels: right classes, integers `[n]`.
        bins: number of bins `B`.
    """
    return reliability_of(*_checked(probs, labels), bins)


def expected_calibration_error(probs: Any, labels: Any, bins: int = 15) -> float:
    """Return the expected calibration error `sum_b n_b / n |accuracy_b - confidence_b|` over the bins of `reliability`.

    It depends on the binning and is biased upwards in small samples: state `bins` and `n` with it.

    Args:
        probs: predicted probabilities, `[n, classes]`.
        labels: right classes, integers `[n]`.
        bins: number of equally wide bins.

    Source: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, 2017, "On Calibration of Modern Neural Networks".

    Example:
        >>> expected_calibration_error([[0.75, 0.25], [0.75, 0.25]], [0, 1])
        0.25
    """
    return reliability(probs, labels, bins).error


def accuracy_rejection(uncertainty: Any, right: Any) -> Rejection:
    """Return the accuracy on what remains when the most uncertain examples are rejected first.

    Examples that are equally uncertain are rejected in random order; the curve is the mean over those orders.

    Args:
        uncertainty: the uncertainty of each prediction, `[n]`; any scale, larger is less sure.
        right: whether each prediction was right, `[n]`.

    Source: M. S. A. Nadeem, J.-D. Zucker, B. Hanczar, 2009, "Accuracy-Rejection Curves (ARCs) for Comparing
    Classification Methods with a Reject Option".

    Example:
        >>> accuracy_rejection([0.9, 0.1, 0.5, 0.2], [False, True, True, True]).accuracy
        array([0.75, 1.  , 1.  , 1.  ])
    """
    scores, hits = _vector(uncertainty, "uncertainty"), _vector(right, "right")
    if hits.shape != scores.shape:
        raise ProbqError(f"uncertainty and right must be as long as each other, not {len(scores)} and {len(hits)}")
    if not np.isin(hits, (0, 1)).all():
        raise ProbqError("right must say of each prediction whether it was right: True or False")
    _, group = np.unique(scores, return_inverse=True)
    share = (np.bincount(group, hits) / np.bincount(group))[np.sort(group)]  # of each example, the surest first
    n = len(share)
    accuracy = (share.cumsum() / np.arange(1, n + 1))[::-1]
    return Rejection(np.arange(n) / n, accuracy, float(accuracy.mean()))


def ood_auroc(familiar: Any, shifted: Any) -> float:
    """Return the probability that a shifted example is more uncertain than a familiar one (AUROC).

    A tie counts one half.

    1: uncertainty tells them apart; 1/2: it says nothing. It is `U / (n m)` of the Mann-Whitney statistic.

    Args:
        familiar: uncertainty of examples like those trained on, `[n]`.
        shifted: uncertainty of examples of another kind, `[m]`.

    Source: D. Hendrycks, K. Gimpel, 2017, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in
    Neural Networks".

    Example:
        >>> ood_auroc([0.1, 0.2], [0.2, 0.9])
        0.875
    """
    low, high = _vector(familiar, "familiar"), _vector(shifted, "shifted")
    statistic = mannwhitneyu(high, low, method="asymptotic").statistic  # the p-value, not asked for, costs least so
    return float(statistic / (len(low) * len(high)))


def interval(
    metric: Callable[..., float],
    *arrays: Any,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    **options: Any,
) -> Interval:
    """Return a metric with its bootstrap interval: percentiles over data sets of the same size, drawn with replacement.

    Args:
        metric: one of those above that give a number, or your own.
        arrays: its arguments; rows that belong together are drawn together.
        level: share of the resampled values within the interval.
        resamples: number of resampled data sets.
        seed: the seed of the draws.
        options: further arguments of the metric.

    Raises:
        ProbqError: if the arrays differ in length, or the metric gives NaN, on the data or on a resampled set.

    Source: B. Efron, 1979, "Bootstrap Methods: Another Look at the Jackknife".

    Example:
        >>> interval(brier, [[0.5, 0.5], [0.5, 0.5]], [0, 1])
        Interval(value=0.5, low=0.5, high=0.5)
    """
    rows = [np.asarray(array) for array in arrays]
    if not rows or any(row.ndim < 1 or len(row) != len(rows[0]) or len(row) == 0 for row in rows):
        raise ProbqError("interval takes arrays of one length, a row for each example, and at least one row")
    if not 0 < level < 1 or not is_count(resamples, 2):
        raise ProbqError("interval takes a level between 0 and 1, and resamples of 2 or more")
    check_seed(seed)
    value, count = float(metric(*rows, **options)), len(rows[0])
    low, high, values = value, value, np.array([value])
    if count > 1:  # one row drawn with replacement is that row

        def resampled(drawn: np.ndarray) -> float:
            return float(metric(*[row[drawn] for row in rows], **options))

        low, high, values = _bootstrap(resampled, count, level, resamples, seed)
    if np.isnan([value, *values]).any():
        raise ProbqError(f"{getattr(metric, '__name__', 'the metric')} is NaN on this data or a resampled part of it")
    return Interval(value, float(low), float(high))


def _bootstrap(
    statistic: Callable[[np.ndarray], float], count: int, level: float, resamples: int, seed: int
) -> tuple[float, float, np.ndarray]:
    """Return percentiles of a statistic of indices drawn from `0 .. count - 1`, and its values.

    Indices are drawn, not rows: arrays of several shapes belong together, which SciPy would broadcast.
    """
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)  # of infinite values, whose percentiles follow below
        found = bootstrap(
            (np.arange(count),),
            statistic,
            n_resamples=resamples,
            confidence_level=level,
            method="percentile",
            vectorized=False,
            batch=1,  # all draws at once would need resamples times the rows
            rng=seed,
        )
    values = found.bootstrap_distribution
    if np.isfinite(values).all():
        return *found.confidence_interval, values
    # Nothing lies between a number and infinity.
    return *np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="nearest"), values


def _checked(probs: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    probs = numbers(probs, "probs")
    if probs.ndim != 2 or 0 in probs.shape:
        raise ProbqError(f"probs must have the shape [n, classes] with at least one row, not {list(probs.shape)}")
    classes = numbers(labels, "labels")
    if classes.shape != (len(probs),):
        raise ProbqError(f"labels must have the shape [{len(probs)}], one for each row, not {list(classes.shape)}")
    if not np.isin(classes, np.arange(probs.shape[1])).all():
        raise ProbqError(
            f"labels must be classes 0 .. {probs.shape[1] - 1}; for targets that are real numbers use probq.regression"
        )
    check_probabilities(probs)
    return probs, classes.astype(np.int64)


def _vector(values: Any, name: str) -> np.ndarray:
    array = numbers(values, name)
    if array.ndim != 1 or len(array) == 0:
        raise ProbqError(f"{name} must be a list of at least one number, not of shape {list(array.shape)}")
    return array
