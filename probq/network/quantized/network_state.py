"""The state of a network in the middle of a fit is all that a fit moves; `save` writes what a posterior is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from probq.network.program.originals import Originals
from probq.network.quantized.quantized import Quantized
from probq.network.quantizers.base import Quantizer
from probq.priors.energies.energy import Energy
from probq.utils.errors import ProbqError

DECIDED = ("fixed", "tuned")  # buffers of quantizers, which come and go
ORIGINALS = "originals."


def network_state(q: Quantized) -> dict[str, Any]:
    """Return the tensors of a network, the very ones, and what else a fit changes of it."""
    return {
        "tensors": {name: tensor.detach() for name, tensor in _tensors(q).items()},
        "folded": q.folded,
        "rounding": q.rounding,
        "calibrated": q.calibrated,
        "energy": None if q.energy is None else dict(vars(q.energy)),
    }


@torch.no_grad()
def restore_network(q: Quantized, state: Mapping[str, Any]) -> None:
    """Give a network the state that `network_state` returned of another one of the same plan.

    Raises:
        ProbqError: if it has other tensors.
    """
    tensors: Mapping[str, Tensor] = state["tensors"]
    q.originals = Originals()
    for name in (name.removeprefix(ORIGINALS) for name in tensors if name.startswith(ORIGINALS)):
        q.originals.make_room(name, torch.empty_like(tensors[f"{ORIGINALS}{name}"], device=q.device))
    for prefix, module in q.named_modules():
        for name in DECIDED if isinstance(module, Quantizer) else ():
            found = tensors.get(f"{prefix}.{name}")
            setattr(module, name, None if found is None else torch.empty_like(found, device=q.device))
    here = _tensors(q)
    if odd := sorted(here.keys() ^ tensors.keys()) or [n for n in here if here[n].shape != tensors[n].shape]:
        raise ProbqError(f"the state is one of another network: {odd[0]} differs")
    for name, tensor in here.items():
        tensor.copy_(tensors[name])
    q.folded, q.rounding, q.calibrated = state["folded"], state["rounding"], state["calibrated"]
    energy = state.get("energy")  # checkpoints of before know none
    q.energy = None if energy is None else Energy(**energy)


class NetworkState:
    """The state of a network is told and taken here as torch's optimizers do it.

    Args:
        q: the network.
    """

    def __init__(self, q: Quantized) -> None:
        self.q = q

    def state_dict(self) -> dict[str, Any]:
        """Return `network_state`."""
        return network_state(self.q)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Call `restore_network`."""
        restore_network(self.q, state_dict)


def _tensors(q: Quantized) -> dict[str, Tensor]:
    """Return all parameters and buffers, also those that no file of a posterior keeps, each once."""
    return {**dict(q.named_parameters()), **dict(q.named_buffers())}
