"""A posterior's file holds the energy by which its widths were chosen, numbers as tensors and names as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probq.priors.energies.energy import NATS, Energy
from probq.utils.errors import ProbqError

ENERGY = "energy."  # how the keys of its tensors begin


def energy_to_entry(energy: Energy | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what the manifest and the tensors of a file say of an energy, nothing if there is none."""
    if energy is None:
        return {}, {}
    entry = {"names": list(energy.names), "widths": [list(bits) for bits in energy.widths], "label": energy.label}
    entry |= {"unit": energy.unit} | ({} if energy.tensors is None else {"tensors": list(energy.tensors)})
    tensors = {f"{ENERGY}unary": torch.as_tensor(np.concatenate(energy.unary))}
    if energy.pairwise is not None:
        tensors[f"{ENERGY}pairwise"] = torch.as_tensor(energy.pairwise).clone()
    return {"energy": entry}, tensors


def energy_from_entry(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Energy | None:
    """Return the energy of a file, None if it has none.

    Raises:
        ProbqError: if its parts do not fit one another, or it is of other quantizers.
    """
    entry = manifest.get("energy")
    if entry is None:
        return None
    try:
        ends = np.cumsum([len(bits) for bits in entry["widths"]])
        numbers, pairwise = tensors[f"{ENERGY}unary"].numpy(), tensors.get(f"{ENERGY}pairwise")
        if numbers.shape != (ends[-1],):
            raise ProbqError(f"its energy has {numbers.size} numbers for {ends[-1]} widths")
        unary = tuple(np.split(numbers, ends[:-1]))
        pairs = None if pairwise is None else pairwise.numpy()
        unit, texts = entry.get("unit", NATS), entry.get("tensors")
        own = Energy(entry["names"], entry["widths"], unary, pairs, entry["label"], unit, texts)
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise ProbqError(f"its energy cannot be read ({error!s:.80})") from error
    if not set(own.names) <= set(manifest["quantizers"]):
        raise ProbqError("its energy is of other quantizers")
    return own
