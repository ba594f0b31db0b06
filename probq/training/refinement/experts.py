"""Experts know widths from other sides than measured losses do: criteria, at the weights that a search has found."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from probq.codebooks.rounding.nearest import all_levels
from probq.criteria import limpq, search
from probq.network.quantized.quantized import Quantized
from probq.priors.energies.energy import Energy
from probq.training.refinement.space import WidthSpace
from probq.utils.errors import ProbqError

EXAMPLES = 512  # of the training data
SEARCHING, STEPPING = 2.0, 0.2  # training steps of `search` and of `limpq` for each network that may be measured

Rows: TypeAlias = list[list[float]]  # for each quantizer one number for each of its options


def ask_experts(
    q: Quantized, batches: Iterable[Any], space: WidthSpace, evaluations: int, progress: bool
) -> list[Rows]:
    """Return what the criteria `search` and `limpq` say about each option of each quantizer; the less the better.

    `search` lets the gates alone learn, from equally probable rungs and without a limit; `limpq` the step size of each
    rung, in the company of random others. There is none where channels or weights have widths of their own, or nothing
    has a choice, and no `limpq` where a rung has no step, such as that of 0 bits or of vectors.

    Args:
        q: the network as its search has left it.
        batches: of training data, with targets.
        space: its choices of widths.
        evaluations: number of networks that may be measured, which sets the number of training steps: two of the one
            and a fifth of the other for each.
        progress: show progress bars.

    Warns:
        UserWarning: where a criterion cannot be had, such as one whose loss is not finite.
    """
    if space.has_own_gates or all(len(quantizer.ladder) == 1 for _, quantizer in q.named_sites()):
        return []
    asked = [partial(search, steps=max(2, round(SEARCHING * evaluations)))]
    if _has_steps(q):
        asked.append(partial(limpq, steps=max(1, round(STEPPING * evaluations))))
    found = []
    for criterion in asked:
        try:
            found.append(_rows(criterion(q, batches, progress=progress), space))
        except ProbqError as error:
            warnings.warn(f"criteria.{criterion.func.__name__} has no say in the widths: {error}", stacklevel=2)
    return found


def _rows(energy: Energy, space: WidthSpace) -> Rows:
    """Return an energy of each option; 0 where a quantizer has no choice."""
    rows = dict(zip(energy.names, energy.unary, strict=True))
    alone = ([0.0] * len(options) for options in space.options)
    return [list(map(float, rows.get(name, zero))) for name, zero in zip(space.names, alone, strict=True)]


def _has_steps(q: Quantized) -> bool:
    """Return whether every rung has two levels or more, none of them vectors."""
    if any(z.ladder.has_vectors for _, z in q.named_quantizers()):
        return False
    return all(len(all_levels(z.levels(k))) > 1 for _, z in q.named_quantizers() for k in range(len(z.ladder)))


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
