"""A Gaussian process learns from choices that were measured what others would give."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RATIOS = tuple(np.logspace(-4, 2, 25))  # of the variance of errors to that of effects, to choose from


class ChoiceProcess:
    """A Gaussian process gives a value to each choice of one option at each of several places.

    A value is a constant, minus a slope times the log-probability of the choice, plus an effect of each option, plus an
    error. Effects and errors are normal; effects at different places are independent, those of two options at one place
    have a correlation that is given, or none.

    Args:
        states: options `[N, places]` of choices that were measured.
        values: `[N]`.
        log_probs: at each place the log-probability of each option, in nats.
        slope: of values by log-probability; None takes that of least squares, at least 0.
        ratio: of the variance of errors to that of effects; None takes that of the greatest marginal likelihood.
        likeness: at each place the correlations `[options, options]` of effects; None takes the identity.

    Attributes:
        error: root mean square of what the mean misses at a choice that it has not seen, by leaving out each.

    Source: C. E. Rasmussen, C. K. I. Williams, 2006, "Gaussian Processes for Machine Learning", chapters 2 and 5
    (equation 5.12).

    Example: two places of two options each; what an option did in one choice is expected of it in another.

        >>> flat = [np.zeros(2), np.zeros(2)]
        >>> process = ChoiceProcess(np.array([[0, 0], [1, 0], [0, 1]]), np.array([5.0, 3.0, 4.0]), flat, ratio=1e-6)
        >>> process(np.array([[1, 1]])).round(2)
        array([2.])
    """

    def __init__(
        self,
        states: np.ndarray,
        values: np.ndarray,
        log_probs: Sequence[np.ndarray],
        slope: float | None = None,
        ratio: float | None = None,
        likeness: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.states, self.log_probs = states, log_probs
        self.likeness = likeness
        before = self._log_prob(states)
        if slope is None:
            centred = before - before.mean()
            slope = max(0.0, -float(centred @ values) / max(float(centred @ centred), 1e-12))
        self.slope, self.offset = slope, float((values + slope * before).mean())
        rest, agree = values + slope * before - self.offset, self._agreement(states)
        if ratio is None:
            ratio = max(RATIOS, key=lambda r: _log_evidence(agree, rest, r))
        covariance = agree + ratio * np.eye(len(states))
        self.weights = np.linalg.solve(covariance, rest)
        left_out = self.weights / np.diag(np.linalg.inv(covariance))
        self.error = float(np.sqrt(np.mean(left_out**2)))

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """Return the expected values `[N]` of choices `[N, places]`."""
        return self.offset - self.slope * self._log_prob(states) + self._agreement(states) @ self.weights

    def effects(self) -> tuple[np.ndarray, ...]:
        """Return at each place what each option adds to the expected value."""
        rows = []
        for place, log_probs in enumerate(self.log_probs):
            own = np.bincount(self.states[:, place], self.weights, len(log_probs)) / self.states.shape[1]
            rows.append((own if self.likeness is None else self.likeness[place] @ own) - self.slope * log_probs)
        return tuple(rows)

    def _agreement(self, states: np.ndarray) -> np.ndarray:
        """Return the covariances `[N, M]` of choices with the measured ones, in units of the effects' variance."""
        if self.likeness is None:
            return np.asarray((states[:, None] == self.states[None]).mean(2))
        alike = (own[a[:, None], b[None]] for own, a, b in zip(self.likeness, states.T, self.states.T, strict=True))
        return np.asarray(sum(alike)) / states.shape[1]

    def _log_prob(self, states: np.ndarray) -> np.ndarray:
        """Return log-probabilities `[N]` of choices in nats."""
        return np.asarray(sum(own[options] for own, options in zip(self.log_probs, states.T, strict=True)))


def _log_evidence(agree: np.ndarray, rest: np.ndarray, ratio: float) -> float:
    """Return the log marginal likelihood with the best common variance, up to a constant."""
    covariance = agree + ratio * np.eye(len(rest))
    fit = max(float(rest @ np.linalg.solve(covariance, rest)), 1e-300)
    return -0.5 * (len(rest) * math.log(fit) + np.linalg.slogdet(covariance)[1])
