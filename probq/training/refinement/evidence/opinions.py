"""Opinions of experts have units of their own, and are given one spread before they are added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Rows: TypeAlias = list[list[float]]  # for each quantizer one number for each of its options


@dataclass(frozen=True)
class Experts:
    """Experts speak in units of their own, and are given one spread over the choices that spend the budget.

    Each estimates how good a choice is, with an error of its own. Where these errors are independent and alike, the
    mean of `K` estimates has `1 / sqrt(K)` times the error of one.

    Attributes:
        opinions: of each expert, the less the better.
        states: choices that spend the budget, `[N, quantizers]`.

    Source: J. M. Bates, C. W. J. Granger, 1969, "The Combination of Forecasts".
    """

    opinions: Sequence[Rows]
    states: np.ndarray

    def beside(self, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Return the sum of what they say, of each with the standard deviation over the choices that these rows have.

        Example:
            >>> experts = Experts([[[0.0, 3.0], [0.0, 0.0]]], np.array([[0, 0], [1, 0], [0, 1], [1, 1]]))
            >>> experts.beside([np.array([2.0, 0.0]), np.zeros(2)])
            (array([0., 2.]), array([0., 0.]))
        """
        spread, total = float(sums(rows, self.states).std()), [np.zeros(len(row)) for row in rows]
        for opinion in self.opinions:
            own = float(sums(opinion, self.states).std())
            if own > 0:
                total = [row + spread / own * np.asarray(said) for row, said in zip(total, opinion, strict=True)]
        return tuple(total)


def sums(rows: Sequence[Sequence[float] | np.ndarray], states: np.ndarray) -> np.ndarray:
    """Return the sum `[N]` of one number for each quantizer, at states `[N, quantizers]`."""
    total = np.zeros(len(states))
    for place, row in enumerate(rows):
        total += np.asarray(row)[states[:, place]]
    return total
