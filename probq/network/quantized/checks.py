"""A posterior's file is checked before anything is made of it: kinds, numbers in range, sizes that fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from probq.network.explicit.functions import EXPLICIT
from probq.network.normalisers.kinds import NORMALISERS, are_options
from probq.network.normalisers.masks import holds_numbers
from probq.network.normalisers.written import is_written
from probq.network.quantized.energy_entry import energy_from_entry
from probq.network.tracing.product_calls import LAYER_CALLS, PRODUCTS
from probq.network.tracing.stand_ins import ARITHMETIC, ENTERED, FUNCTIONS, SHORTENED, is_stand_in
from probq.utils.errors import ProbqError

LARGEST = 2**53  # of the whole numbers in the manifest
LARGEST_LEVEL = 2**16  # of levels, and of their number
LARGEST_EXPONENT = 100  # of scales: their products with levels are normal numbers in float32
MOST_JOINED = 2**10  # tensors of one call
LARGEST_INPUT = 2**24  # numbers of one example; the network runs on two of them to be compared
NUMBER, MAYBE = (int, float), type(None)
LAYER = MappingProxyType(
    {
        "name": str, "weight": str, "input": (str, MAYBE), "macs": int, "weights": int, "inputs": int, "outputs": int,
        "shape": [int], "channel_axis": int, "transposed": bool, "first": bool, "smallest": NUMBER,
        "norm": (str, MAYBE), "reads": (str, MAYBE), "plain": bool, "others": int,
    }
)  # fmt: skip
QUANTIZER = MappingProxyType(
    {
        "kind": str, "ladder": [dict], "gates": [int], "scales": [int], "fixed": bool, "tuned": bool, "shape": [int],
        "channel_axis": int, "nearest": int, "profile": str, "keep_zeros": bool, "laws": dict,
    }
)  # fmt: skip
PARTS = MappingProxyType(
    {
        "layers": [dict], "quantizers": dict, "activations": dict, "tied": dict, "sites": dict, "held": [str],
        "frozen": [str], "signature": [list], "temperature": NUMBER, "budget": (dict, list, MAYBE), "likelihood": dict,
        "calibrated": bool, "folded": bool, "training": bool, "notes": [str], "versions": dict, "fingerprint": [str],
        "energy": dict, "calls": dict, "explicit": [str], "arguments": dict,
    }
)  # fmt: skip
OPTIONAL = frozenset(
    {
        "activations", "sites", "held", "fingerprint", "tuned", "profile", "keep_zeros", "laws", "energy", "calls",
        "explicit", "arguments",
    }
)  # fmt: skip


def check_parts(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise unless a file's parts are of the right kinds, its numbers finite and in range, and its sizes its tensors'.

    Raises:
        ProbqError: with what is wrong, as part of a sentence.
    """
    _of_kinds("the manifest", manifest, PARTS)
    _numbers(manifest)
    for name, tensor in tensors.items():
        if not holds_numbers(tensor):
            raise ProbqError(f"{name} holds a number that is not finite")
    for place, layer in enumerate(manifest["layers"]):
        _of_kinds(f"layer {place}", layer, LAYER, required=tuple(LAYER)[:8])
        counts = (layer["macs"], layer["weights"], layer["inputs"], layer["outputs"], layer.get("others", 0))
        if min(*counts, *layer["shape"], 0) < 0:
            raise ProbqError(f"layer {place} has a size below 0")
    tied = {str(alias): str(owner) for alias, owner in manifest["tied"].items()}
    tensors = {**tensors, **{alias: tensors[owner] for alias, owner in tied.items() if owner in tensors}}
    for name, entry in manifest["quantizers"].items():
        _quantizer(name, entry, manifest["layers"], tensors)
    for name, entry in manifest["activations"].items() if "activations" in manifest else ():
        if not (isinstance(entry, list) and len(entry) == 2 and type(entry[0]) is int and type(entry[1]) is bool):
            raise ProbqError(f"the activation {name!r} is not given by bits and sign")
        for side in ("input", "output"):
            _scales(f"tables.{name.replace('.', '/')}.{side}", [1], tensors)
    for name, entry in manifest.get("calls", {}).items():
        _call(name, entry, tensors)
    for entry in manifest["signature"]:
        if len(entry) != 2 or not isinstance(entry[0], list) or not isinstance(entry[1], str):
            raise ProbqError("an input of its network has no shape and type")
        if any(type(n) is not int or n < 0 for n in entry[0]) or math.prod(entry[0]) > LARGEST_INPUT:
            raise ProbqError(f"an input of its network has the shape {entry[0]!r:.80}")
    for key in ("tied", "sites", "versions"):
        if not all(isinstance(value, str) for value in manifest.get(key, {}).values()):
            raise ProbqError(f"{key} names something that is no name")
    energy_from_entry(manifest, tensors)
    if "torch" not in manifest["versions"]:
        raise ProbqError("it does not say which torch wrote it")


def _call(name: str, entry: Any, tensors: Mapping[str, Tensor]) -> None:
    """Check that a stand-in is given by its function, its operand and plain arguments, and has a step if it must."""
    if isinstance(entry, list) and entry[:1] == ["explicit"]:
        if len(entry) != 2 or entry[1] not in EXPLICIT or not is_stand_in(name):
            raise ProbqError(f"the call {name!r} is none that can be spelled out")
        return
    if isinstance(entry, list) and entry[:1] == ["written"]:
        if not is_written(entry) or not is_stand_in(name):
            raise ProbqError(f"the call {name!r} is none that ends a normalisation")
        return
    if isinstance(entry, list) and entry[:1] == ["shortened"]:
        _, kind, places = entry if len(entry) == 3 else ("",) * 3
        if kind not in SHORTENED or not isinstance(places, list) or any(type(k) is not int for k in places):
            raise ProbqError(f"the call {name!r} is none whose constants can have few digits")
        return
    if isinstance(entry, list) and entry[:1] == ["layer"]:
        _layer_call(name, entry, tensors)
        return
    if isinstance(entry, list) and entry[:1] == ["matrix"]:
        _matrix_call(name, entry, tensors)
        return
    if isinstance(entry, list) and entry[:1] == ["product"]:
        _product(name, entry)
        return
    if isinstance(entry, list) and entry[:1] == ["quotient"]:
        if [type(part) for part in entry] != [str, bool, bool]:
            raise ProbqError(f"the call {name!r} is not given as a quotient of two tensors")
        for step in (name, f"{name}.dividend", f"{name}.divisor"):
            _step(step, tensors)
        return
    if isinstance(entry, list) and entry[:1] == ["entered"]:
        if len(entry) != 3 or entry[1] not in ENTERED or type(entry[2]) is not int or not 0 <= entry[2] < MOST_JOINED:
            raise ProbqError(f"the call {name!r} is none that takes the network's own input")
        _step(name, tensors)
        return
    kinds = (str, int, bool, list, dict)
    if not isinstance(entry, list) or [type(part) for part in entry] != list(kinds):
        raise ProbqError(f"the call {name!r} is not given by function, operand and arguments")
    kind, operand, _, args, kwargs = entry
    plain = all(isinstance(value, bool | int | float | str | MAYBE) for value in (*args, *kwargs.values()))
    met = kwargs.get("largest", 1)
    plain = plain and (kind not in ARITHMETIC or (type(met) in NUMBER and 0 < met <= LARGEST))
    known = kind in {*ARITHMETIC, *FUNCTIONS} or (kind in NORMALISERS and are_options(kind, kwargs))
    if not known or operand not in (0, 1) or not plain or not is_stand_in(name):
        raise ProbqError(f"the call {name!r} is none that can have a stand-in")
    if kind not in FUNCTIONS and not kwargs.get("float"):
        _step(name, tensors)


def _step(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Check that a stand-in has the exponents of its steps."""
    exponents = _tensor(f"steps.{name.replace('.', '/')}.log2_steps", [2], tensors)
    if not exponents.is_floating_point() or float(exponents.abs().max()) > LARGEST_EXPONENT:
        raise ProbqError(f"the steps of {name!r} are no exponents up to {LARGEST_EXPONENT}")


def _quantized_by(layer: Mapping[str, Any], weight: bool) -> tuple[Any, ...]:
    """Return the names of a layer's quantizers, of its weight or of what it gets."""
    if layer.get("others"):
        return () if weight else (layer["input"], layer["weight"])
    return (layer["weight" if weight else "input"],)


def _names_weight(name: str, weight: Any, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether an entry names a weight of the network, or tells the shape of the layer's own."""
    own = tensors.get(f"net.{name}.layer.weight")
    return isinstance(weight, str) or (isinstance(weight, list) and own is not None and weight == list(own.shape))


def _matrix_call(name: str, entry: list[Any], tensors: Mapping[str, Tensor]) -> None:
    """Check that a product with a constant matrix is given by its operand, the weight and how that is arranged."""
    if len(entry) == 8:
        _matrices_call(name, entry, tensors)
        return
    _, operand, weight, axes, sizes, vector = entry if len(entry) == 6 else ("",) * 6
    lists = isinstance(axes, list) and isinstance(sizes, list) and len(sizes) == (2 if axes else 0)
    numbers = lists and all(type(n) is int and n >= 0 for n in (*axes, *sizes))
    if not numbers or sorted(axes) != list(range(len(axes))) or operand not in (0, 1) or type(vector) is not bool:
        raise ProbqError(f"the call {name!r} is not given as a product with a matrix")
    if not _names_weight(name, weight, tensors) or not is_stand_in(name):
        raise ProbqError(f"the call {name!r} is not given as one with a weight of the network")


def _matrices_call(name: str, entry: list[Any], tensors: Mapping[str, Tensor]) -> None:
    """Check that a product with several constant matrices is given by its operand, the weight and their number."""
    _, operand, weight, *nothing, groups = entry
    if not _names_weight(name, weight, tensors) or not is_stand_in(name):
        raise ProbqError(f"the call {name!r} is not given as one with a weight of the network")
    fits = isinstance(weight, list) and len(weight) == 3 and weight[2] == 1
    fits = fits and type(groups) is int and groups > 1 and weight[0] % groups == 0
    if not fits or operand not in (0, 1) or nothing != [[], [], False, None]:
        raise ProbqError(f"the call {name!r} is not given as a product with several matrices")


def _layer_call(name: str, entry: list[Any], tensors: Mapping[str, Tensor]) -> None:
    """Check that a call with a weight is given by its function, its parameters and the function's own options."""
    _, kind, weight, bias, options = entry if len(entry) == 5 else ("",) * 5
    named = (
        isinstance(kind, str)
        and kind in LAYER_CALLS
        and _names_weight(name, weight, tensors)
        and isinstance(bias, str | MAYBE)
        and is_stand_in(name)
    )
    if not named or not isinstance(options, dict) or not set(options) <= set(LAYER_CALLS[kind][1]):
        raise ProbqError(f"the call {name!r} is not given as one with a weight of the network")
    values = [n for value in options.values() for n in (value if isinstance(value, list) else [value])]
    if any(type(n) is not int and n not in ("same", "valid") for n in values):
        raise ProbqError(f"the call {name!r} has options that are no numbers")


def _product(name: str, entry: list[Any]) -> None:
    """Check that a product of two tensors is given by its function, whether both are one, and which are first."""
    known = len(entry) == 4 and entry[1] in PRODUCTS and type(entry[2]) is bool and is_stand_in(name)
    if not known or not isinstance(entry[3], list) or [type(first) for first in entry[3]] != [bool, bool]:
        raise ProbqError(f"the call {name!r} is not given as a product of two tensors")


def _quantizer(name: str, entry: Any, layers: list[dict[str, Any]], tensors: Mapping[str, Tensor]) -> None:
    """Check that a layer has a weight or an input of that name, and that every size is that of a tensor in the file."""
    required = ("kind", "ladder", "gates", "scales", "fixed", "shape", "channel_axis", "nearest")
    weight = isinstance(entry, dict) and entry.get("kind") == "weight"
    _of_kinds(f"quantizer {name!r}", entry, QUANTIZER, required if weight else required[:5])
    owner = next((layer for layer in layers if name in _quantized_by(layer, weight)), None)
    if owner is None:
        raise ProbqError(f"no layer has a quantizer {name!r}")
    for rung in entry["ladder"]:
        values = [v for v in rung.values() if not isinstance(v, bool | list)]
        values += [v for v in rung.values() if isinstance(v, list) for v in v]
        if any(type(v) not in NUMBER or abs(v) > LARGEST_LEVEL for v in values):
            raise ProbqError(f"the ladder of {name!r} has a level or a number of levels beyond {LARGEST_LEVEL}")
    key, rungs, gates = f"quantizers.{name.replace('.', '/')}", len(entry["ladder"]), entry["gates"]
    _scales(key, [rungs, *entry["scales"]], tensors)
    _tensor(f"{key}.logits", [*gates, rungs - 1], tensors)
    for part in ("fixed", "tuned"):
        if entry.get(part):
            chosen = _tensor(f"{key}.{part}", gates, tensors)
            if chosen.dtype != torch.int64 or (chosen.numel() and not 0 <= chosen.min() <= chosen.max() < rungs):
                raise ProbqError(f"{key}.{part} names a rung that is not on the ladder")
    if weight:
        if entry["shape"] != owner["shape"] or not 0 <= entry["channel_axis"] < len(entry["shape"]):
            raise ProbqError(f"the shape of {name!r} is not that of its layer")
        own = f"net.{name.removeprefix('.')}"  # a network that is one layer has no name
        if own in tensors:
            _tensor(own, entry["shape"], tensors)
        elif math.prod(entry["shape"]) > max(tensor.numel() for tensor in tensors.values()):
            raise ProbqError(f"{name!r} is larger than any tensor in the file")


def _scales(key: str, shape: list[int], tensors: Mapping[str, Tensor]) -> None:
    scale = _tensor(f"{key}.log2_scale", shape, tensors)
    if not scale.is_floating_point():
        raise ProbqError(f"{key}.log2_scale is {scale.dtype}".replace("torch.", ""))
    if scale.numel() and float(scale.abs().max()) > LARGEST_EXPONENT:
        raise ProbqError(f"{key}.log2_scale holds an exponent beyond {LARGEST_EXPONENT}")


def _tensor(name: str, shape: list[int], tensors: Mapping[str, Tensor]) -> Tensor:
    if name not in tensors:
        raise ProbqError(f"its tensors do not match at {name!r}, which is missing")
    if list(tensors[name].shape) != shape:
        raise ProbqError(f"{name} is {list(tensors[name].shape)} in it, and {shape!r:.80} by its manifest")
    return tensors[name]


def _of_kinds(what: str, value: Any, kinds: Mapping[str, Any], required: tuple[str, ...] | None = None) -> None:
    """Raise unless a JSON object has the keys required, by default all but optional ones, and values of these kinds."""
    if not isinstance(value, Mapping):
        raise ProbqError(f"{what} is not an object")
    for key in kinds if required is None else required:
        if key not in value and key not in OPTIONAL:
            raise ProbqError(f"{what} has no {key!r}")
    for key, kind in kinds.items():
        found = value.get(key)
        if isinstance(kind, list):
            right = isinstance(found, list) and all(_is(one, kind[0]) for one in found)
        else:
            right = _is(found, kind)
        if key in value and not right:
            raise ProbqError(f"{key!r} of {what} is {found!r:.80}")


def _is(value: Any, kind: Any) -> bool:
    """Return whether a JSON value is of a kind; true and false are no numbers."""
    return isinstance(value, kind) and (not isinstance(value, bool) or kind is bool)


def _numbers(manifest: Mapping[str, Any]) -> None:
    for value in _leaves(manifest):
        if isinstance(value, float) and not math.isfinite(value):
            raise ProbqError("its manifest holds a number that is not finite")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ProbqError("its manifest holds a whole number beyond 2**53")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _leaves(one)
    else:
        yield value
