"""Likelihoods are written as JSON here, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from probq.likelihoods.classes import Categorical, categorical
from probq.likelihoods.network_likelihood import Likelihood
from probq.likelihoods.normal import Normal

KINDS = (Categorical, Normal)


def to_entry(likelihood: Likelihood | None) -> dict[str, Any] | None:
    """Return what JSON can hold of a likelihood.

    The result is None for one of the user's own, which may do more than the class it is of.
    """
    if likelihood is None or likelihood is categorical:
        return {"kind": "none" if likelihood is None else "categorical"}
    return likelihood.to_entry() if isinstance(likelihood, KINDS) and type(likelihood) in KINDS else None


def from_entry(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Likelihood | None:
    """Return the likelihood of an entry.

    Args:
        entry: from `to_entry`.
        tensors: the tensors of its state, by their names in it.
    """
    if entry["kind"] == "normal":
        return Normal(None if entry["learned"] else entry["sd"])
    if "axis" in entry:
        return Categorical(entry["axis"], tensors.get("weight"), entry["ignore_index"], entry.get("smoothing", 0.0))
    return categorical if entry["kind"] == "categorical" else None
