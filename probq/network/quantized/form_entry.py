"""A file holds how a network is called, where that is not with tensors alone, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from probq.network.program.network import Network
from probq.network.tracing.arguments import axis_in, empty
from probq.utils.errors import ProbqError
from probq.utils.structure_entries import from_entry, to_entry
from probq.utils.structures.tensors import Keywords
from probq.utils.structures.walk import leaves, map_leaves

TENSOR, TEXT = "tensor", "text:"  # a leaf that is a tensor, and the beginning of one that is a text
SECOND = "tensor, batch second"  # a leaf that is a tensor `[layers, batch, features]`


def form_to_entry(q: Network) -> dict[str, Any]:
    """Return the part of the manifest, which is empty for tensors alone."""
    if all(isinstance(one, Tensor) and not axis_in(one) for one in q.form):
        return {}
    named = q.form[-1] if isinstance(q.form[-1], Keywords) else {}
    positional = q.form[:-1] if named else q.form
    return {"arguments": {"positional": to_entry(_written(positional)), "keywords": to_entry(_written(dict(named)))}}


def _written(structure: Any) -> Any:
    def leaf(one: Any) -> Any:
        if isinstance(one, Tensor):
            return SECOND if axis_in(one) else TENSOR
        if isinstance(one, str):
            return TEXT + one
        return one if type(one) in (bool, int, float) else None  # None itself, and what no file holds

    return map_leaves(leaf, structure)


def form_from_entry(manifest: Mapping[str, Any], dtypes: list[torch.dtype]) -> tuple[Any, ...]:
    """Return the network's arguments with an empty tensor in the place of each tensor.

    Args:
        manifest: of the file.
        dtypes: of the tensors.

    Raises:
        ProbqError: if they are not those of so many tensors.
    """
    entry = manifest.get("arguments")
    if entry is None:
        return tuple(empty(dtype) for dtype in dtypes)
    if set(entry) != {"positional", "keywords"}:
        raise ProbqError("its arguments are not positional ones and keywords")
    positional, named = (from_entry(entry[part], _is_leaf) for part in ("positional", "keywords"))
    if not isinstance(positional, tuple) or not isinstance(named, dict):
        raise ProbqError("its arguments are not positional ones and keywords")
    left = iter(dtypes)
    form: tuple[Any, ...] = (*positional, Keywords(named)) if named else positional
    if sum(one in (TENSOR, SECOND) for one in leaves(form)) != len(dtypes):
        raise ProbqError(f"its arguments do not hold {len(dtypes)} tensors, of which it has the shapes")
    return tuple(
        map_leaves(lambda one: empty(next(left), int(one == SECOND)) if one in (TENSOR, SECOND) else _read(one), form)
    )


def _is_leaf(leaf: Any) -> bool:
    known = isinstance(leaf, bool | int | float | None) or leaf in (TENSOR, SECOND)
    return known or (isinstance(leaf, str) and TEXT in leaf[:5])


def _read(leaf: Any) -> Any:
    return leaf.removeprefix(TEXT) if isinstance(leaf, str) else leaf
