"""An energy over widths becomes the prior of a network's widths: row by row, and pair by pair."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from probq.network.program.network import Network
from probq.priors import Energy as RungEnergies
from probq.priors.energies.energy import NATS, OF_CHOICES, Energy
from probq.utils.errors import ProbqError


def check_energy(q: Network, energy: Energy) -> None:
    """Raise unless an energy knows the quantizers of a network that have a choice, and their widths.

    Where it also knows what they round, that is compared too; weights may have moved.

    Raises:
        ProbqError: with the names that both have, or with what differs.
    """
    free = {name: tuple(z.ladder.bits) for name, z in q.named_sites() if len(z.ladder) > 1}
    known = dict(zip(energy.names, energy.widths, strict=True))
    if other := [name for name in known if name in free and free[name] != known[name]]:
        raise ProbqError(
            f"the energy is of another network or plan: the widths of {other[0]} are {known[other[0]]} bits in it and "
            f"{free[other[0]]} in the network; measure it again"
        )
    if free != known:
        raise ProbqError(
            f"the energy is of another network or plan: it knows {listed(energy.names)}, the network has a choice at "
            f"{listed(free)}; measure it again"
        )
    there, here = dict(zip(energy.names, energy.tensors or (), strict=False)), rounded_tensors(q, energy.names)
    for name, own in zip(energy.names, here, strict=True):
        if there.get(name, own) != own:
            raise ProbqError(
                f"the energy is of another network or plan: {name} is {there[name]} in it and {own} in the network; "
                "measure it again"
            )


def check_nats(energy: Energy, of_choices: bool = False) -> None:
    """Raise unless an energy is in nats, as a law `exp(-energy)` needs it.

    Args:
        energy: the energy.
        of_choices: whether nats of log-probability will do, which no number of examples multiplies.

    Raises:
        ProbqError: with what to do.
    """
    if energy.unit != NATS and not (of_choices and energy.unit == OF_CHOICES):
        raise ProbqError(
            f"a prior takes energies in {NATS}, and that of {energy.label} is in {energy.unit}: say what one of these "
            "is worth, energy.to_nats(factor), or measure with probq.criteria.loss or kl; probq.allocate needs no unit"
        )


def rounded_tensors(q: Network, names: Iterable[str]) -> tuple[str, ...]:
    """Return in words what each of several quantizers rounds, by which an energy knows the network again.

    The words are the shape of a weight or the size of an input, the MACs of its layers for one example, and a hash of
    the codebooks: all of it stays as it is when weights are trained.
    """
    members: dict[str, list[str]] = {name: [name] for name in names}
    for name, site in q.sites.items():
        if site in members:
            members[site].append(name)
    return tuple("; ".join(_rounded_tensor(q, name) for name in tied) for tied in members.values())


def _rounded_tensor(q: Network, name: str) -> str:
    layers = [layer for layer in q.layers if name in (layer.weight, layer.input)]
    size = str(list(layers[0].shape)) if name in q.weight_names else f"{layers[0].inputs} numbers"
    digest = hashlib.sha256()
    for rung in q.quantizer(name).ladder.rungs:
        digest.update(rung.levels().float().numpy().tobytes() + b"|")
    return f"{size} for {sum(layer.macs for layer in layers)} MACs with codebooks {digest.hexdigest()[:8]}"


def set_width_prior(q: Network, energy: Energy) -> None:
    """Give the widths of a network the prior `P(widths) proportional to exp(-energy(widths))`, in the place of others.

    Where a tensor has several gates, each has its share of the tensor's energy.

    Args:
        q: the network.
        energy: in nats.

    Raises:
        ProbqError: if the energy is of another network or plan, or has another unit.
    """
    check_energy(q, energy)
    check_nats(energy)
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
