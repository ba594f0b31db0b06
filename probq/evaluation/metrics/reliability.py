"""A reliability diagram shows how often a confidence of p is right; the expected calibration error sums it up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import beta

from probq.utils.arguments import is_count
from probq.utils.errors import ProbqError


@dataclass(frozen=True)
class Reliability:
    """Confidences fall into equally wide bins `(k / B, (k + 1) / B]`; each has the share that was right.

    Attributes:
        counts: examples in each bin `[B]`.
        confidence: mean confidence in each bin, NaN where it is empty `[B]`.
        accuracy: share of right ones in each bin, NaN where it is empty `[B]`.
        low, high: ends of the 94 % interval of the accuracy, under Jeffreys' prior `[B]`.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def error(self) -> float:
        """Return the expected calibration error, `sum_k counts_k / N |accuracy_k - confidence_k|`, in [0, 1]."""
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float(self.counts @ gaps / self.counts.sum())

    @property
    def means(self) -> tuple[float, float]:
        """Return the accuracy and mean confidence of all examples."""
        total = self.counts.sum()
        return tuple(float(self.counts @ np.nan_to_num(v) / total) for v in (self.accuracy, self.confidence))  # type: ignore[return-value]


def reliability_of(predictions: Any, targets: Any, bins: int = 10) -> Reliability:
    """Return the bins of a reliability diagram.

    Args:
        predictions: confidences `[N]` in [0, 1], or probabilities of classes `[N, C]`, whose largest is the confidence.
        targets: to confidences, whether each was right `[N]`, bool or 0 and 1; to probabilities, the classes `[N]`.
        bins: number of bins.

    Raises:
        ProbqError: if shapes do not fit, numbers are not finite or no probabilities, or a class does not exist.

    Source: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, 2017, "On Calibration of Modern Neural Networks".

    >>> reliability_of([0.8, 0.8, 0.8, 0.8], [1, 1, 1, 0]).accuracy[7]
    np.float64(0.75)
    """
    if not is_count(bins, 1):
        raise ProbqError(f"bins is a number of bins, 1 or more, not {bins!r}")
    confidence, right = _pairs(_array(predictions, "predictions"), _array(targets, "targets"))
    place = np.searchsorted(np.arange(1, bins) / bins, confidence)  # a product with `bins` may round past an edge
    counts, hits = np.bincount(place, minlength=bins), np.bincount(place, right, bins)
    full = np.where(counts > 0, counts, np.nan)
    ends = share_interval(hits, counts)
    return Reliability(counts, np.bincount(place, confidence, bins) / full, hits / full, *ends)


def share_interval(hits: Any, counts: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the 94 % interval of a share, `hits` of `counts`, under Jeffreys' prior `Beta(1/2, 1/2)`.

    >>> [end.round(2) for end in share_interval(5, 10)]
    [np.float64(0.23), np.float64(0.77)]
    """
    low, high = beta.interval(0.94, hits + 0.5, counts - hits + 0.5)
    return low, high


def _array(values: Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
        array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ProbqError(f"{what} must be an array of numbers, not {type(values).__name__}") from error
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise ProbqError(f"{what} hold {array[tuple(bad[0])]} at index {', '.join(map(str, bad[0]))}; leave it out")
    return array


def _pairs(predictions: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the confidence of each example, and 1 where it was right."""
    if predictions.ndim not in (1, 2) or targets.shape != predictions.shape[:1] or not predictions.size:
        raise ProbqError(
            "give confidences [N] with outcomes [N], or probabilities [N, C] with classes [N], and at least one; "
            f"the shapes are {list(predictions.shape)} and {list(targets.shape)}"
        )
    if predictions.min() < 0 or predictions.max() > 1 + 1e-6:
        raise ProbqError(
            "confidences and probabilities lie between 0 and 1; apply softmax to logits first "
            "(for predicted numbers see probq.plot.coverage)"
        )
    if predictions.ndim == 1:
        if not np.isin(targets, (0, 1)).all():
            raise ProbqError("to confidences [N] the outcomes are 0 or 1 (wrong or right); for classes give [N, C]")
        return predictions, targets
    if np.abs(predictions.sum(1) - 1).max() > 1e-3:
        raise ProbqError("the probabilities [N, C] of an example must sum to 1; apply softmax to logits first")
    if not np.isin(targets, np.arange(predictions.shape[1])).all():
        raise ProbqError(f"classes are integers from 0 to {predictions.shape[1] - 1}, one for each row")
    return np.minimum(predictions.max(1), 1.0), (predictions.argmax(1) == targets).astype(float)
