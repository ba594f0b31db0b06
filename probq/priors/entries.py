"""Priors are written as JSON here, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probq.priors.bit_planes import BitPlanes
from probq.priors.code_prior import CodePrior
from probq.priors.codes import Laplace, Normal, SpikeSlab
from probq.priors.drop_bits import DropBits
from probq.priors.three_wells import ThreeWells
from probq.priors.widths import Energy, Geometric, WidthPrior
from probq.utils.errors import ProbqError

KINDS = (Normal, Laplace, SpikeSlab, ThreeWells, BitPlanes, DropBits, Geometric, Energy)


def to_entry(prior: CodePrior | WidthPrior | None) -> dict[str, Any] | None:
    """Return what JSON can hold of a prior, or None for the uniform one."""
    if prior is None:
        return None
    if type(prior) not in KINDS:
        raise ProbqError(f"a file cannot hold a prior of one's own ({type(prior).__name__}); use those of probq.priors")
    if isinstance(prior, SpikeSlab):
        return {"kind": prior.kind, "spike": prior.spike, "slab": to_entry(prior.slab)}
    return {"kind": prior.kind, **vars(prior)}


def from_entry(entry: Mapping[str, Any] | None) -> Any:
    """Return the prior of an entry.

    Raises:
        LookupError: if there is no such kind.
    """
    if entry is None:
        return None
    found = [kind for kind in KINDS if kind.kind == entry["kind"]]
    fields = {key: value for key, value in entry.items() if key != "kind"}
    if "slab" in fields:
        fields["slab"] = from_entry(fields["slab"])
    return found[0](**fields)
