"""An energy over widths becomes the prior of a network's widths: row by row, and pair by pair."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from probq.network.program.network import Network
from probq.priors import Energy as RungEnergies
from probq.priors.energies.energy import Energy
from probq.utils.errors import ProbqError


def check_energy(q: Network, energy: Energy) -> None:
    """Raise unless an energy knows the quantizers of a network that have a choice, and their widths.

    Raises:
        ProbqError: with the names that both have.
    """
    free = {name: tuple(z.ladder.bits) for name, z in q.named_sites() if len(z.ladder) > 1}
    if free != dict(zip(energy.names, energy.widths, strict=True)):
        raise ProbqError(
            f"the energy is of another network or plan: it knows {listed(energy.names)}, the network has a choice at "
            f"{listed(free)}; measure it again"
        )


def set_width_prior(q: Network, energy: Energy) -> None:
    """Give the widths of a network the prior `P(widths) proportional to exp(-energy(widths))`, in the place of others.

    Where a tensor has several gates, each has its share of the tensor's energy.

    Args:
        q: the network.
        energy: in nats.

    Raises:
        ProbqError: if the energy is of another network or plan.
    """
    check_energy(q, energy)
    for name, row in zip(energy.names, energy.unary, strict=True):
        quantizer = q.quantizer(name)
        quantizer.width_prior = RungEnergies((row / math.prod(quantizer.gates)).tolist())
    pairs = None if energy.pairwise is None else torch.as_tensor(energy.pairwise, dtype=torch.float64, device=q.device)
    if pairs is not None:
        order = [energy.names.index(name) for name in _names(q)]
        starts = [sum(map(len, energy.widths[:k])) for k in order]
        places = [start + rung for start, k in zip(starts, order, strict=True) for rung in range(len(energy.widths[k]))]
        pairs = pairs[places][:, places]
    q.pairs = pairs


def pair_energy(q: Network, widths: Mapping[str, Tensor]) -> Tensor:
    """Return `sum_{i < j} pairwise_ij` in nats, a float64 scalar, of drawn rungs or in expectation of independent ones.

    Args:
        q: a network whose prior has pairs.
        widths: for each quantizer one-hot rungs or probabilities of rungs, `[*gates, B]`.
    """
    assert q.pairs is not None  # as the caller has asked
    shares = [widths[name].reshape(-1, len(q.quantizer(name).ladder)).mean(0) for name in _names(q)]
    flat = torch.cat(shares).to(q.pairs)
    return (flat @ q.pairs @ flat) / 2


def _names(q: Network) -> list[str]:
    return [name for name, quantizer in q.named_sites() if len(quantizer.ladder) > 1]


def listed(names: Iterable[str]) -> str:
    """Return the first four of several names, and how many more there are."""
    several = list(names)
    return ", ".join(several[:4]) + (f" and {len(several) - 4} more" if len(several) > 4 else "")
