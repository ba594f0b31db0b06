"""The option `of` says whether quantizers of weights, of inputs or both are perturbed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from probq.network.program.program import Program
from probq.priors.energies.energy import Energy
from probq.utils.errors import ProbqError


def quantizers_of(q: Program, of: str) -> tuple[str, ...]:
    """Return the names of the quantizers that have a choice of widths, those of a kind, tied ones once.

    Args:
        q: a quantized network.
        of: "weights", "inputs" or "both".

    Raises:
        ProbqError: if `of` is another word, or no quantizer of that kind has a choice.
    """
    if of not in ("both", "weights", "inputs"):
        raise ProbqError(f'of is "both", "weights" or "inputs", not {of!r:.80}')
    every = [name for name, quantizer in q.named_sites() if len(quantizer.ladder) > 1]
    names = tuple(name for name in every if of == "both" or (name in q.weight_names) == (of == "weights"))
    if not names:
        kind = "quantizer" if of == "both" else f"quantizer of {of}"
        raise ProbqError(f"no {kind} has a choice of widths: give quantize a plan with ladders of several rungs")
    return names


def only_of(energy: Energy, q: Program, of: str) -> Energy:
    """Return an energy of the same quantizers that is 0 for those that `of` leaves out, also in pairs.

    Args:
        energy: of all quantizers of `q` that have a choice.
        q: the quantized network.
        of: "weights", "inputs" or "both".

    Raises:
        ProbqError: as `quantizers_of`.
    """
    kept = set(quantizers_of(q, of))
    unary = [row if name in kept else np.zeros(len(row)) for name, row in zip(energy.names, energy.unary, strict=True)]
    here = np.repeat([name in kept for name in energy.names], [len(bits) for bits in energy.widths])
    pairwise = None if energy.pairwise is None else np.where(np.outer(here, here), energy.pairwise, 0)
    return replace(energy, unary=tuple(unary), pairwise=pairwise)
