"""`clado` measures the loss quantizer by quantizer and pair by pair."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations
from os import PathLike
from typing import Any

import numpy as np

from probq.criteria.measuring.measure import mean_loss, measured, pair_choices, single_choices, single_energy
from probq.criteria.measuring.ready import perturbed_network, tell_negative
from probq.network.quantized.quantized import Quantized
from probq.priors.energies.energy import Energy


def clado(
    q: Quantized,
    batches: Iterable[Any],
    *,
    examples: int = 512,
    of: str = "both",
    project: bool = False,
    resume: str | PathLike[str] | None = None,
    processes: int = 1,
    progress: bool = True,
) -> Energy:
    """Measure additive energies as in `loss`, and for each pair what they miss:

        E_ij(b, c) = L(i on b, j on c) - L(i on b) - L(j on c) + L(all on their widest rung).

    One pass over the examples for each pair of rungs: minutes for ten quantizers, hours for a hundred.

    Args:
        q: from `quantize`.
        batches: as in `loss`.
        examples: as in `loss`; the same ones for all terms.
        of: as in `loss`; pairs are those of these quantizers.
        project: set negative eigenvalues of the quadratic form to 0, so that a solver has a convex problem.
        resume: as in `loss`.
        processes: as in `loss`.
        progress: as in `loss`.

    Warns:
        UserWarning: if energies of single quantizers are negative.

    Raises:
        ProbqError: if there are no labels or no data, or no such quantizer has a choice.

    Source: Z. Deng, X. Wang, S. Sharify, M. Orshansky, 2023, "Mixed-Precision Quantization with Cross-Layer
    Dependencies".
    """
    network = perturbed_network(q, batches, examples, "clado", labels=True, of=of)
    choices = [*single_choices(network), *pair_choices(network)]
    found = measured(network, choices, mean_loss, resume, progress, processes)
    single = single_energy(network, found, "clado")
    ends = np.cumsum([0, *map(len, network.widths)])
    pairwise = np.zeros((ends[-1], ends[-1]))
    perturbed = [(place, name) for place, name in enumerate(network.names) if name in network.perturbed]
    for (i, one), (j, other) in combinations(perturbed, 2):
        for k, b in enumerate(network.widths[i][:-1]):
            for m, c in enumerate(network.widths[j][:-1]):
                both = found[((one, b), (other, c))] - found[()]
                pairwise[ends[i] + k, ends[j] + m] = both - single.unary[i][k] - single.unary[j][m]
    energy = replace(single, pairwise=pairwise + pairwise.T)
    return tell_negative(projected(energy) if project else energy)


def projected(energy: Energy) -> Energy:
    """Return the energy whose quadratic form is the nearest without negative eigenvalues.

    The form `x' G x / 2` over one-hot rungs has `G_ii = 2 E_i` and `G_ij = E_ij`. Its projection couples rungs of one
    quantizer, of which only one is chosen, so those couplings are left out.
    """
    flat = np.concatenate(energy.unary)
    form = np.diag(2 * flat) + (0 if energy.pairwise is None else energy.pairwise)
    values, vectors = np.linalg.eigh(form)
    form = (vectors * np.maximum(values, 0)) @ vectors.T
    form = (form + form.T) / 2
    sizes = np.cumsum([len(row) for row in energy.unary])[:-1]
    unary = tuple(np.split(form.diagonal() / 2, sizes))
    for part in np.split(np.arange(len(flat)), sizes):
        form[np.ix_(part, part)] = 0
    return replace(energy, unary=unary, pairwise=form, label=f"{energy.label}, projected")
