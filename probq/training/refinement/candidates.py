"""Widths that are worth a trial: those measured best before the tuning, and uniform ones."""

from __future__ import annotations

from itertools import product

import numpy as np

from probq.network.quantized.quantized import Quantized
from probq.training.refinement.best_first import BestFirstSearch
from probq.training.refinement.evidence.evidence import ranked
from probq.training.refinement.evidence.opinions import Experts
from probq.training.refinement.evidence.space import State, WidthSpace


def find_candidates(q: Quantized, search: BestFirstSearch, number: int, experts: Experts | None = None) -> list[State]:
    """A number of different choices worth tuning, if there are so many, the best one first.

    What is measured before the tuning favours networks close to those that were searched. So up to half of the
    candidates are the widest uniform widths that keep the budget, with steps up where those leave room.

    Args:
        q: the network.
        search: of the best widths, run; the uniform ones are measured, too.
        number: greatest number of candidates.
        experts: who have a say in what is best, or None.
    """
    measured = ranked(search.space, search.losses, experts)
    best = measured[: number - number // 2]
    plain = [state for state in uniform_states(q, search.space) if state not in best] if number > 1 else []
    plain = sorted(plain, key=search.loss)[: number // 2]
    others = [state for state in measured if state not in plain][: number - len(plain)]
    return [*others, *plain]


def uniform_states(q: Quantized, space: WidthSpace) -> list[State]:
    """States of one width for all weights and one for all inputs, as wide as the limits allow, then filled up.

    A quantizer without that width takes the next wider one, or its widest. There are none where channels or weights
    have widths of their own.
    """
    if space.has_own_gates:
        return []
    weight = [name in q.weights for name in space.names]
    found: dict[tuple[int, int], State] = {}
    for widths in product(_widths(space, weight), _widths(space, [not w for w in weight])):
        wanted = [widths[0] if w else widths[1] for w in weight]
        state = tuple(
            min(int(np.searchsorted(bits, width)), len(bits) - 1)
            for bits, width in zip(space.options, wanted, strict=True)
        )
        if space.keeps(state):
            found[widths] = state
    widest = [s for w, s in found.items() if not any(v != w and v[0] >= w[0] and v[1] >= w[1] for v in found)]
    return list(dict.fromkeys(_filled(space, state) for state in widest))


def _widths(space: WidthSpace, chosen: list[bool]) -> list[int]:
    """Return all widths of the chosen quantizers, without pruning."""
    return sorted({b for bits, own in zip(space.options, chosen, strict=True) if own for b in bits} - {0})


def _filled(space: WidthSpace, state: State) -> State:
    """Steps up within the limits, the most probable one first, until none fits."""
    while up := [s for s in space.neighbours(state) if all(a >= b for a, b in zip(s, state, strict=True))]:
        state = max(up, key=space.log_prob)
    return state
