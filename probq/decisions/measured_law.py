"""The law of widths that was learned from measured losses stands in for the gates wherever widths are chosen."""

from __future__ import annotations

import numpy as np

from probq.network.program.program import Program
from probq.priors.energies.energy import OF_CHOICES, Energy


def additive_laws(q: Program, energy: Energy) -> dict[str, np.ndarray]:
    """Return `exp(-energy)` without pairs, and without limits: log-probabilities `[B]` of the rungs of each quantizer.

    Args:
        q: the network, no channel or weight of which has a width of its own.
        energy: of its quantizers; one that it does not know has equally probable rungs.
    """
    laws = {n: np.full(len(z.ladder), -np.log(len(z.ladder))) for n, z in q.named_sites()}
    rows = zip(energy.names, energy.unary, strict=True)
    return laws | {name: -row - np.logaddexp.reduce(-row) for name, row in rows}


def measured_laws(q: Program) -> dict[str, np.ndarray] | None:
    """Return the laws that `fit` or `decide` left in `q.energy`, None where nothing was measured of whole choices.

    They know nothing of limits, while gates have to keep one in expectation, for which they pay: of choices that are
    best for what they cost, gates rank the cheaper ones no lower. Where a limit is a condition, nothing has to pay.
    """
    energy = q.energy
    if energy is None or energy.unit != OF_CHOICES or energy.pairwise is not None:
        return None
    return additive_laws(q, energy)
