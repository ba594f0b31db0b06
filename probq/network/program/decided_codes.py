"""This module gives the codes of every weight at decided widths, and rungs as one-hot vectors."""

from __future__ import annotations

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
    """Return the codes of every weight at decided widths: the most probable ones, or a draw."""
    chosen, result = rung_onehots(q, widths), {}
    with q.evaluating():  # the codes of what ships: normalisation folded
        for name, quantizer in q.weights.items():
            rung = q.rung(name, chosen[name])
            law = quantizer.law(q.location(name, rung), rung)
            levels = law.rsample() if draw and quantizer.nearest > 1 else law.mode
            result[name] = code_indices(rung.levels, levels).int().cpu().numpy()
    return result
