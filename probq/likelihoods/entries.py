"""Likelihoods are written as JSON here, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from probq.likelihoods.classes import Categorical, categorical
from probq.likelihoods.network_likelihood import Likelihood
from probq.likelihoods.normal import Normal
from probq.likelihoods.per_output import PerOutput
from probq.utils.structure_entries import from_entry as structure_from_entry
from probq.utils.structure_entries import to_entry as structure_to_entry
from probq.utils.structures.walk import Structure, leaves, map_leaves

KINDS = (Categorical, Normal)


def to_entry(likelihood: Likelihood | None) -> dict[str, Any] | None:
    """Return what JSON can hold of a likelihood.

    The result is None for one of the user's own, which may do more than the class it is of.
    """
    if likelihood is None or likelihood is categorical:
        return {"kind": "none" if likelihood is None else "categorical"}
    if type(likelihood) is PerOutput:
        parts = [to_entry(one) for one in likelihood.now().values()]
        return (
            None
            if None in parts
            else {"kind": "per output", "of": structure_to_entry(_places(likelihood.names)), "parts": parts}
        )
    return likelihood.to_entry() if isinstance(likelihood, KINDS) and type(likelihood) in KINDS else None


def from_entry(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Likelihood | None:
    """Return the likelihood of an entry.

    Args:
        entry: from `to_entry`.
        tensors: the tensors of its state, by their names in it.
    """
    if entry["kind"] == "per output":
        own = [
            {n.removeprefix(f"parts.{k}."): t for n, t in tensors.items() if n.startswith(f"parts.{k}.")}
            for k in range(len(entry["parts"]))
        ]
        parts = [from_entry(one, state) for one, state in zip(entry["parts"], own, strict=True)]
        of = structure_from_entry(
            entry["of"], lambda leaf: leaf is None or (type(leaf) is int and 0 <= leaf < len(parts))
        )
        return PerOutput(map_leaves(lambda leaf: None if leaf is None else parts[leaf], of))
    if entry["kind"] == "normal":
        return Normal(None if entry["learned"] else entry["sd"])
    if "axis" in entry:
        return Categorical(entry["axis"], tensors.get("weight"), entry["ignore_index"], entry.get("smoothing", 0.0))
    return categorical if entry["kind"] == "categorical" else None


def _places(names: Structure) -> Structure:
    """Return the structure of the likelihoods' places, None where there is none."""
    numbers = iter(range(len(list(leaves(names)))))
    return map_leaves(lambda name: None if name is None else next(numbers), names)
