"""Criteria are asked about widths at the weights that a search has found."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any

from probq.codebooks.rounding.nearest import all_levels
from probq.criteria import limpq, search
from probq.network.quantized.quantized import Quantized
from probq.priors.energies.energy import Energy
from probq.training.refinement.evidence.opinions import Rows
from probq.training.refinement.evidence.space import WidthSpace
from probq.utils.errors import ProbqError

SEARCHING, STEPPING = 2.0, 0.2  # training steps of `search` and of `limpq` for each network that may be measured


def ask_criteria(
    q: Quantized, batches: Iterable[Any], space: WidthSpace, evaluations: int, progress: bool
) -> list[Rows]:
    """Return what the criteria `search` and `limpq` say about each option of each quantizer; the less the better.

    `search` lets the gates alone learn, from equally probable rungs and without a limit; `limpq` the step size of each
    rung, in the company of random others. There is none where channels or weights have widths of their own, or nothing
    has a choice, and no `limpq` where a rung has no step, such as that of 0 bits or of vectors.

    Args:
        q: the network with weights to ask at.
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
    """Return an energy of each option, but for rungs that the space leaves out; 0 where a quantizer has no choice."""
    rows = dict(zip(energy.names, energy.unary, strict=True))
    alone = ([0.0] * len(options) for options in space.options)
    return [list(map(float, rows.get(name, zero)[-len(zero) :])) for name, zero in zip(space.names, alone, strict=True)]


def _has_steps(q: Quantized) -> bool:
    """Return whether every rung has two levels or more, none of them vectors."""
    if any(z.ladder.has_vectors for _, z in q.named_quantizers()):
        return False
    return all(len(all_levels(z.levels(k))) > 1 for _, z in q.named_quantizers() for k in range(len(z.ladder)))
