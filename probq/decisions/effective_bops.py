"""Effective bit operations of decided codes count products by the binary digits that a constant really has."""

from __future__ import annotations

import numpy as np
import torch

from probq.codebooks.rounding.nearest import code_levels
from probq.cost.layer_costs import FLOAT_BITS
from probq.decisions.assignment import Assignment
from probq.network.program.decided_codes import rung_onehots
from probq.network.program.program import Program, check_posterior
from probq.network.quantizers.base import FINEST_LEVEL


def effective_bops(q: Program, assignment: Assignment) -> float:
    """Return `sum over layers of MACs * mean over weights of digits * input bits` of a decision, for one example.

    The digits of a weight are those of its integer level in binary from the first to the last one that is not zero;
    none for a zero, and the sign is none. Every weight of a layer takes part in equally many products, as without
    padding. Inputs, and both tensors of a product, count their width. What stays float counts 32 bits.

    Args:
        q: the network.
        assignment: the assignment of that network.

    Source: C. Sun, T. K. Aarrestad, V. Loncar, J. Ngadiuba, M. Spiropulu, 2024, "Gradient-based Automatic Mixed
    Precision Quantization for Neural Networks On-Chip" (EBOPs, with declared widths of the inputs, signs included).
    """
    check_posterior(q, "effective_bops")
    chosen, total = rung_onehots(q, assignment.widths), 0.0
    for layer in q.layers:
        digits = float(assignment.widths.get(layer.weight, FLOAT_BITS) if layer.is_product else FLOAT_BITS)
        if layer.weight in q.weight_names:
            codes = torch.as_tensor(np.asarray(assignment.codes[layer.weight]), device=q.device).long()
            levels = code_levels(q.rung(layer.weight, chosen[layer.weight]).levels, codes)
            digits = float(_digits(levels.detach().double().cpu().numpy()).mean())
        total += layer.macs * digits * int(assignment.widths.get(layer.input or "", FLOAT_BITS))
    return total


def _digits(levels: np.ndarray) -> np.ndarray:
    whole = np.abs(np.round(levels / FINEST_LEVEL)).astype(np.int64)  # levels are multiples of the finest one
    odd = whole // np.maximum(whole & -whole, 1)
    return np.ceil(np.log2(odd + 1.0))
