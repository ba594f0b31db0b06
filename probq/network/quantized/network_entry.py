"""This module checks that a network is the one that a posterior's file was made for."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from probq.network.explicit.modules import spell_out, spelled_out
from probq.network.program.program import Program
from probq.network.quantized.fingerprint import fingerprint
from probq.network.tracing.module_kinds import NORMS, QUANTIZABLE, TRANSPOSED, channel_axis_of
from probq.network.tracing.product_calls import Product, made_from
from probq.network.tracing.stand_ins import place_stand_ins
from probq.utils.errors import ProbqError

NET = "net."  # how the keys of the network's tensors begin


def place(tensor: Tensor) -> Any:
    """Return what two names of one tensor have in common, or None for an empty tensor."""
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else None


def place_calls(path: str | PathLike[str], net: nn.Module, manifest: Mapping[str, Any]) -> None:
    """Spell out the modules that a file says so of, and put its stand-ins into a network.

    Raises:
        ProbqError: if it has no module of which the file says that its forward makes such a call, or no such module.
    """
    names = set(manifest.get("explicit", ()))
    spell_out(net, names)
    if absent := sorted(names - set(spelled_out(net))):
        raise ProbqError(f"{path} holds a posterior of another network: {absent[0]!r} is no module to spell out")
    try:
        place_stand_ins(net, {name: made_from(entry) for name, entry in manifest.get("calls", {}).items()})
    except (AttributeError, LookupError, RuntimeError, ValueError) as error:
        raise ProbqError(f"{path} holds a posterior of another network: {error!s:.300}") from error


def check_fits(
    path: str | PathLike[str], net: nn.Module, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Raise at the first tensor or module in which a network differs from that of the file.

    Raises:
        ProbqError: if there is one.
    """
    try:
        _check_same(net, tensors, manifest["tied"])
        _check_modules(net, manifest)
    except ProbqError as error:
        raise ProbqError(f"{path} holds a posterior of another network: {error!s:.300}") from error


def _check_modules(net: nn.Module, manifest: Mapping[str, Any]) -> None:
    """Raise where what the file calls layers, normalisations and activations are not that in the network."""
    modules, shapes = dict(net.named_modules()), {n: p.shape for n, p in net.named_parameters(remove_duplicate=False)}
    for layer in manifest["layers"]:
        name, module = layer["name"], modules.get(layer["name"])
        if layer.get("others"):
            if not isinstance(module, Product):
                raise ProbqError(f"{name!r} is no product of two tensors in the network given")
            continue
        own = layer["weight"].removeprefix(".")  # a network that is one layer has no name
        if list(shapes.get(own, ())) != layer["shape"]:
            raise ProbqError(f"{layer['weight']!r} is not a weight of shape {layer['shape']} in the network given")
        if layer["input"] is not None or isinstance(module, QUANTIZABLE):
            transposed = isinstance(module, TRANSPOSED)
            axis = channel_axis_of(module)
            said = layer.get("transposed", False), layer.get("channel_axis", 0)
            if not isinstance(module, QUANTIZABLE) or said != (transposed, axis):
                raise ProbqError(f"{name!r} is not such a layer in the network given")
        if layer.get("norm") is not None and not isinstance(modules.get(layer["norm"]), NORMS):
            raise ProbqError(f"{layer['norm']!r} is not a batch normalisation of the network given")
    for name in (*manifest.get("activations", ()), *manifest.get("held", ())):
        if name not in modules:
            raise ProbqError(f"{name!r} is not a module of the network given")


def check_computes_the_same(path: str | PathLike[str], q: Program, manifest: Mapping[str, Any]) -> None:
    """Raise where the network of `q` calls other operations than that of the file.

    Warns:
        UserWarning: if the file does not hold its operations, or another version of torch wrote them in another way.

    Raises:
        ProbqError: with what differs.
    """
    there, here = manifest.get("fingerprint"), fingerprint(q.net, q.signature, q.form)
    if there == here:
        return
    if there is None:
        message = "does not say what its network computes, because an older probq wrote it"
    else:
        message = f"holds a posterior of another network: {_difference(there, here)}"
        if manifest["versions"]["torch"] == str(torch.__version__):
            raise ProbqError(f"{path} {message}; give the network that was quantized")
        message += f" (or torch {manifest['versions']['torch']}, which wrote it, calls them otherwise)"
    warnings.warn(f"{path} {message}; compare outputs with known ones, then save it again", UserWarning, stacklevel=3)


def _difference(there: list[str], here: list[str]) -> str:
    """Return the first difference of two lists of operations, as the end of a sentence."""
    step = next((k for k, pair in enumerate(zip(there, here, strict=False)) if pair[0] != pair[1]), None)
    if step is None:
        return f"it has {len(there)} operations, the one given {len(here)}"
    old, new = there[step], here[step]
    where = f" (#{step} is the result of operation {step})" if re.search(rf"#{step}\b", old + new) and step else ""
    return f"operation {step + 1} of its network is {old}, of the one given {new}{where}"


def _net_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(NET): tensor for name, tensor in tensors.items() if name.startswith(NET)}


def _check_same(net: nn.Module, tensors: Mapping[str, Tensor], tied: Mapping[str, str]) -> None:
    there = _net_tensors(tensors)
    there |= {a.removeprefix(NET): there[o.removeprefix(NET)] for a, o in tied.items() if o.removeprefix(NET) in there}
    here = {name: tensor for name, tensor in net.state_dict().items() if isinstance(tensor, Tensor)}
    for name, tensor in here.items():
        if name not in there:
            raise ProbqError(f"{name} of the network given is not in it")
        if tensor.shape != there[name].shape or tensor.dtype != there[name].dtype:
            found, wanted = (f"{t.dtype} {list(t.shape)}".removeprefix("torch.") for t in (there[name], tensor))
            raise ProbqError(f"{name} is {found} in it and {wanted} in the network given")
    for name in there:
        if name not in here:
            raise ProbqError(f"its {name} is not in the network given")
    for alias, owner in ((a.removeprefix(NET), o.removeprefix(NET)) for a, o in tied.items() if a.startswith(NET)):
        if place(here[alias]) != place(here[owner]):
            raise ProbqError(f"{alias} and {owner} are one tensor in it, but not in the network given")
