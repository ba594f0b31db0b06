"""Some networks cannot become integers at any widths; this module tells before they are fitted."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from probq.integer.lowering.emit import emit_nodes
from probq.integer.lowering.graph import Walk
from probq.integer.lowering.operations.values import reduced
from probq.network.program.decided_codes import decided_codes, rung_onehots
from probq.network.program.program import Program
from probq.utils.errors import ProbqError


def foreseen_refusal(q: Program) -> str:
    """Return what `lower` refuses a network for at its narrowest and at its widest widths.

    It is empty if `lower` takes one of them.

    Narrow widths keep accumulators short, and wide ones have steps so fine that the limit of a clip is a multiple.
    """
    trial = copy.deepcopy(q).cpu().eval()
    trial.folded = True
    return _refusal(trial, _widths(trial, 0)) and _refusal(trial, _widths(trial, -1))


def _refusal(q: Program, widths: dict[str, Any]) -> str:
    try:
        walk = Walk(q, rung_onehots(q, widths), decided_codes(q, widths))
        emit_nodes([reduced(output)[0] for output in walk.outputs()], walk.ports.origins)
    except ProbqError as error:
        return str(error)
    return ""


def _widths(q: Program, place: int) -> dict[str, Any]:
    """Return for each quantizer the width at one place of its ladder.

    Widths of 0 bits, which leave nothing to look at, do not count.
    """
    result = {}
    for name, quantizer in q.named_quantizers():
        bits = [b for b in quantizer.ladder.bits if b] or [0]
        result[name] = np.full(quantizer.gates, bits[place])
    return result
