"""This module gives the codes of every weight at decided widths, rungs as one-hot vectors, and the output there."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from probq.codebooks.rounding.nearest import code_indices
from probq.network.program.program import Program


def rung_onehots(q: Program, widths: Any) -> dict[str, Tensor]:
    """Return the one-hot rungs of decided widths."""
    result = {}
    for name, quantizer in q.named_quantizers():
        bits = np.asarray(widths[name]).reshape(quantizer.gates)
        rung = torch.as_tensor(np.searchsorted(quantizer.ladder.bits, bits), device=q.device)
        result[name] = F.one_hot(rung, len(quantizer.ladder)).to(torch.get_default_dtype())
    return result


@torch.no_grad()
def decided_codes(q: Program, widths: Any, draw: bool = False) -> dict[str, np.ndarray]:
    """Return the codes of every weight at decided widths: the most probable ones, or a draw.

    They are computed on the CPU, so that the same parameters have the same codes whatever device they are on.
    """
    if q.device.type != "cpu":
        q = copy.deepcopy(q).cpu()
    chosen, result = rung_onehots(q, widths), {}
    with q.evaluating():  # the codes of what ships: normalisation folded
        for name, quantizer in q.weights.items():
            rung = q.rung(name, chosen[name])
            law = quantizer.law(q.location(name, rung), rung)
            levels = law.rsample() if draw and quantizer.nearest > 1 else law.mode
            result[name] = code_indices(rung.levels, levels).int().cpu().numpy()
    return result


def decided_output(q: Program, args: tuple[Any, ...]) -> Any:
    """Return the output at fixed widths with every code at its mode, normalisation as it stands."""
    onehots = {name: quantizer.probs() for name, quantizer in q.named_quantizers()}
    rungs = {name: q.rung(name, onehots[name]) for name in q.weights}
    levels = {n: w.law(q.location(n, rungs[n]), rungs[n], nearest=1).rsample() for n, w in q.weights.items()}
    return q.run(onehots, levels, args)
