"""Numbers of each quantizer, or an importance of each layer, become an energy of all quantizers with a choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probq.criteria.measuring.quantizers_of import quantizers_of
from probq.network.program.program import Program
from probq.network.program.width_prior import rounded_tensors
from probq.priors.energies.energy import NATS, Energy


def energy_of(q: Program, rows: Mapping[str, np.ndarray], label: str, unit: str = NATS) -> Energy:
    """Return the energy with these rows less their value at the widest rung, and zeros for quantizers that have none.

    Args:
        q: a quantized network.
        rows: a number for each rung, by quantizer.
        label: of the criterion.
        unit: of the rows.
    """
    sites: dict[str, Any] = {name: tuple(z.ladder.bits) for name, z in q.named_sites() if len(z.ladder) > 1}
    unary = tuple(rows[name] - rows[name][-1] if name in rows else np.zeros(len(bits)) for name, bits in sites.items())
    tensors = rounded_tensors(q, sites)
    return Energy(tuple(sites), tuple(sites.values()), unary, label=label, unit=unit, tensors=tensors)


def importance_energy(q: Program, importance: Mapping[str, float], of: str, label: str) -> Energy:
    """Return `E_i(b) = theta_i (b_max - b)`, whose least value under a budget has the largest `sum_i theta_i b_i`.

    Both the weight and the input of a layer have its importance. A quantizer that serves several layers, because its
    weight is shared or its width tied, has the sum of theirs, as it stands in that sum once for each.

    Args:
        q: a quantized network.
        importance: `theta` of each layer by name, 0 or more.
        of: "weights", "inputs" or "both"; the energy of others is 0.
        label: of the criterion.
    """
    theta: dict[str, float] = {}
    for layer in q.layers:
        for name in (layer.weight, layer.input):
            site = q.sites.get(name or "", name or "")
            theta[site] = theta.get(site, 0.0) + importance[layer.name]
    bits = {name: np.array(q.quantizer(name).ladder.bits, dtype=float) for name in quantizers_of(q, of)}
    return energy_of(q, {name: theta[name] * (b.max() - b) for name, b in bits.items()}, label, "importance times bits")
