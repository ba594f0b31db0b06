"""States of Python are kept as JSON with tensors beside it, and are the same when they are read again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probq.utils.errors import ProbqError

PLAIN = frozenset({int, float, bool, str, type(None)})


def to_entry(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return what JSON keeps of a state; its tensors are copied to the CPU and put beside it.

    Args:
        value: numbers, text, tensors, arrays, and lists, tuples and dicts of them.
        name: of the state, by which its tensors are called.
        tensors: those found so far, by name; more are added.

    Raises:
        ProbqError: if there is something else in it.

    Example:
        >>> kept = {}
        >>> entry = to_entry({"betas": (0.9, 0.999), "mean": torch.ones(2)}, "adam", kept)
        >>> list(kept), from_entry(entry, kept)
        (['adam.mean'], {'betas': (0.9, 0.999), 'mean': tensor([1., 1.])})
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(value.copy())
        return {"array": name}
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        kept = not value.is_contiguous() and torch.empty_like(value).stride() == value.stride()
        return {"tensor": name} | ({"stride": list(value.stride())} if kept else {})
    if isinstance(value, list) and all(type(one) in PLAIN for one in value):
        return value
    if isinstance(value, list):
        return [to_entry(one, f"{name}.{place}", tensors) for place, one in enumerate(value)]
    if isinstance(value, tuple):
        return {"tuple": to_entry(list(value), name, tensors)}
    if isinstance(value, Mapping) and all(isinstance(key, str | int) for key in value):
        return {"dict": [[key, to_entry(one, f"{name}.{key}", tensors)] for key, one in value.items()]}
    raise ProbqError(
        f"a checkpoint cannot hold {name}, a {type(value).__name__}: keep numbers, text, tensors, and lists, tuples "
        "and dicts of them there, or fit without a folder of checkpoints"
    )


def from_entry(entry: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the state that `to_entry` was given.

    Raises:
        LookupError: if it is no entry, or a tensor is missing.
    """
    if isinstance(entry, list):
        return [from_entry(one, tensors) for one in entry]
    if not isinstance(entry, dict):
        return entry
    if "stride" in entry:  # as in channels-last networks, whose fused optimizer wants states in the same order
        found = tensors[entry["tensor"]]
        return torch.empty_strided(found.shape, entry["stride"], dtype=found.dtype).copy_(found)
    ((kind, content),) = entry.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "tuple":
        return tuple(from_entry(content, tensors))
    return {key: from_entry(one, tensors) for key, one in {"dict": content}[kind]}
