"""An averaged prediction is uncertain for reasons that add up; this module tells them apart, on numpy arrays."""

from typing import Any, NamedTuple

import numpy as np

from probq.utils.errors import ProbqError


class Uncertainty(NamedTuple):
    """The uncertainty of an averaged prediction is `total = aleatoric + epistemic`.

    Attributes:
        mean: averaged probabilities `[batch, ..., classes]`, or averaged numbers `[batch, ...]`.
        total: entropy of the average in nats `[batch, ...]`, or variance of the target in its unit squared.
        aleatoric: what stays when the network is known: mean entropy of the members, or mean variance of the noise.
        epistemic: what knowing the network would take away: mutual information between target and network in nats
            (BALD), or variance of the members' means.
    """

    mean: np.ndarray
    total: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray


def classification(probs: Any) -> Uncertainty:
    """Return the parts of the uncertainty about a class: `H(mean p) = mean H(p) + I(class; network)`, in nats.

    Args:
        probs: probabilities of the classes under each draw or member, `[draws, batch, ..., classes]`.

    Raises:
        ProbqError: if the shape has no draws, or the rows are not probabilities.

    Source: N. Houlsby, F. Huszar, Z. Ghahramani, M. Lengyel, 2011, "Bayesian Active Learning for Classification and
    Preference Learning".

    Example:
        >>> certain_but_at_odds = [[[1.0, 0.0]], [[0.0, 1.0]]]
        >>> classification(certain_but_at_odds).epistemic.round(4)
        array([0.6931])
    """
    probs = numbers(probs, "probs")
    if probs.ndim < 3 or probs.shape[0] < 1 or probs.shape[-1] < 1:
        raise ProbqError(f"probs must have the shape [draws, batch, classes], not {list(probs.shape)}")
    check_probabilities(probs)
    mean = probs.mean(0)
    total, aleatoric = entropy(mean), entropy(probs).mean(0)
    return Uncertainty(mean, total, aleatoric, np.maximum(total - aleatoric, 0.0))


def regression(means: Any, variances: Any = 0.0) -> Uncertainty:
    """Return the parts of the variance of a number, `Var y = E[Var(y | network)] + Var(E[y | network])`, its total.

    Args:
        means: predicted mean under each draw or member, `[draws, batch, ...]`.
        variances: the variances of the noise under each draw or member, of a shape that broadcasts to that of `means`.

    Raises:
        ProbqError: if the shapes do not fit, or a number is not finite, or a variance negative.

    Example:
        >>> regression([[1.0], [3.0]], 0.5)
        Uncertainty(mean=array([2.]), total=array([1.5]), aleatoric=array([0.5]), epistemic=array([1.]))
    """
    means, variances = numbers(means, "means"), numbers(variances, "variances")
    if means.ndim < 2 or means.shape[0] < 1:
        raise ProbqError(f"means must have the shape [draws, batch, ...], not {list(means.shape)}")
    if (variances < 0).any():
        raise ProbqError("variances must not be negative; give squares of standard deviations")
    try:
        noise = np.broadcast_to(variances, means.shape).mean(0)
    except ValueError as error:
        raise ProbqError(
            f"variances of shape {list(variances.shape)} do not fit means of shape {list(means.shape)}"
        ) from error
    spread = means.var(0)
    return Uncertainty(means.mean(0), noise + spread, noise, spread)


def entropy(probs: np.ndarray) -> np.ndarray:
    """Return `-sum_k p_k log p_k` over the last axis, in nats."""
    # numpy alone, as in `softmax`: a deployed ensemble of integer models runs where SciPy is not installed
    entropies = -(probs * np.log(np.where(probs > 0, probs, 1.0))).sum(-1)
    return np.asarray(entropies + 0.0)  # not -0.0 of a prediction that is sure


def softmax(logits: Any) -> np.ndarray:
    """Return the probabilities `exp(l_k) / sum_j exp(l_j)` over the last axis.

    Example:
        >>> softmax([0.0, 0.0])
        array([0.5, 0.5])
    """
    logits = numbers(logits, "logits")
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def numbers(values: Any, name: str) -> np.ndarray:
    """Return the values as float64, checked to be finite; the error says which argument, and where."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProbqError(f"{name} must be an array of numbers: {error}") from error
    if not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))[0].tolist()
        raise ProbqError(f"{name} holds {array[tuple(where)]} at index {where}; every number must be finite")
    return array


def check_probabilities(probs: np.ndarray) -> None:
    """Raise unless the last axis holds probabilities: none negative, and a sum of 1."""
    if (probs < 0).any() or not np.allclose(probs.sum(-1), 1.0, atol=1e-3):
        raise ProbqError(
            "probs must be probabilities that sum to 1 over the last axis; apply a softmax to logits first"
        )
