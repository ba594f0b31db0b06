"""Softmax and normalisation are called as functions, also by the modules of `torch.nn`; their calls are read here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Options = Mapping[str, Any]


def _axes(x: Tensor, options: Options) -> list[int]:
    return [int(n) for n in x.shape[x.dim() - options["axes"] :]]


# What each computes of a tensor and of a gain and a shift, which may be None, with its options.
NORMALISERS: Mapping[str, Callable[[Tensor, Tensor | None, Tensor | None, Options], Tensor]] = MappingProxyType(
    {
        "softmax": lambda x, gain, shift, o: F.softmax(x, o["axis"]),
        "log_softmax": lambda x, gain, shift, o: F.log_softmax(x, o["axis"]),
        "layer_norm": lambda x, gain, shift, o: F.layer_norm(x, _axes(x, o), gain, shift, o["eps"]),
        "rms_norm": lambda x, gain, shift, o: F.rms_norm(x, _axes(x, o), gain, o["eps"]),
        "group_norm": lambda x, gain, shift, o: F.group_norm(x, o["groups"], gain, shift, o["eps"]),
        "instance_norm": lambda x, gain, shift, o: F.instance_norm(x, None, None, gain, shift, eps=o["eps"]),
    }
)
SOFTMAXES = frozenset({"softmax", "log_softmax"})
# Arguments of the functions and of their twins in `torch`, in the order in which those take them.
_ORDER: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "softmax": ("input", "dim", "dtype"),
        "log_softmax": ("input", "dim", "dtype"),
        "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
        "rms_norm": ("input", "normalized_shape", "weight", "eps"),
        "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
        "instance_norm": ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats"),
    }
)
EPS = 1e-5


@dataclass(frozen=True)
class NormaliserCall:
    """A call of softmax or of a normalisation has one form here, however it is written.

    Attributes:
        kind: of `NORMALISERS`.
        tensors: what is normalised, a gain and a shift, None where there is none.
        options: the axis of a softmax, counted from the last; for a normalisation how many of the last axes, or how
            many groups of channels, and `eps`.
    """

    kind: str
    tensors: tuple[Any, Any, Any]
    options: dict[str, Any]


def read_normaliser(name: str, args: tuple[Any, ...], kwargs: Options) -> NormaliserCall | None:
    """Return a call, or None where a function normalises nothing, or along the batch or by statistics of its own.

    Args:
        name: of the function.
        args: its arguments.
        kwargs: those by name.
    """
    if name not in _ORDER:
        return None
    given = dict(zip(_ORDER[name], args, strict=False)) | dict(kwargs)
    x = given.get("input")
    if not isinstance(x, Tensor) or x.dim() < 2 or not x.is_floating_point():
        return None
    if name in SOFTMAXES:
        axis = 1 if given.get("dim") is None and x.dim() in (2, 4) else given.get("dim")  # as torch guesses
        if not isinstance(axis, int) or given.get("dtype") not in (None, x.dtype):
            return None
        return NormaliserCall(name, (x, None, None), {"axis": axis % x.dim() - x.dim()}) if axis % x.dim() else None
    options = _options(name, x, given)
    return options and NormaliserCall(name, (x, given.get("weight"), given.get("bias")), options)


def _options(name: str, x: Tensor, given: Options) -> Any:
    eps = given.get("eps", EPS)
    if name in ("layer_norm", "rms_norm"):
        axes = len(given["normalized_shape"])
        own = {"axes": axes, "eps": eps} if axes < x.dim() else None
    elif name == "group_norm":
        own = {"groups": int(given["num_groups"]), "eps": eps}
    else:
        own = {"eps": eps} if given.get("use_input_stats", True) and given.get("running_mean") is None else None
    return own and {**own, "eps": float(torch.finfo(x.dtype).eps if eps is None else eps)}


def are_options(kind: str, options: Options) -> bool:
    """Return whether these are options that a file may give to a kind of normaliser."""
    own = dict(options)
    names = [own.pop(part, "") for part in ("gain", "shift")]
    if kind in SOFTMAXES:
        own.pop("float", None)
        return set(own) == {"axis"} and type(own["axis"]) is int and own["axis"] < 0 and names == ["", ""]
    eps = own.pop("eps", None)
    sizes = {"layer_norm": {"axes"}, "rms_norm": {"axes"}, "group_norm": {"groups"}, "instance_norm": set()}
    counts = all(type(size) is int and size > 0 for size in own.values())
    plain = isinstance(eps, int | float) and math.isfinite(eps) and all(isinstance(name, str) for name in names)
    return set(own) == sizes[kind] and counts and plain


def to_rows(x: Tensor, kind: str, options: Options) -> Tensor:
    """Return a tensor with what is normalised together along its last axis, the batch still first."""
    if kind in SOFTMAXES:
        return x.movedim(options["axis"], -1)
    if kind in ("layer_norm", "rms_norm"):
        return x.flatten(x.dim() - options["axes"])
    return x.reshape(x.shape[0], options.get("groups", x.shape[1]), -1)


def from_rows(rows: Tensor, x: Tensor, kind: str, options: Options) -> Tensor:
    """Return rows in the shape of the tensor that they are of."""
    return rows.movedim(-1, options["axis"]) if kind in SOFTMAXES else rows.reshape(x.shape)


def spread_affine(part: Tensor, x: Tensor, kind: str) -> Tensor:
    """Return a gain or shift as it broadcasts to a tensor: it is of the last axes, or of channels."""
    return part if kind in ("layer_norm", "rms_norm") else part.reshape([-1] + [1] * (x.dim() - 2))
