"""A posterior is loaded from a safetensors file with the network's tensors and a JSON manifest, never with pickle."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from os import PathLike
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from probq.codebooks import Ladder
from probq.codebooks.entries import from_entry as codebook_from_entry
from probq.cost.budget import Budget
from probq.cost.entries import from_entry as cost_from_entry
from probq.likelihoods.entries import from_entry as likelihood_from_entry
from probq.network.quantized.energy_entry import ENERGY, energy_from_entry
from probq.network.quantized.file_format import read
from probq.network.quantized.form_entry import form_from_entry
from probq.network.quantized.law_entries import laws_from_entry
from probq.network.quantized.network_entry import NET, check_computes_the_same, check_fits, place_calls
from probq.network.quantized.quantized import Quantized
from probq.network.quantized.save import LIKELIHOOD
from probq.network.quantizers.activation import Activation
from probq.network.quantizers.base import InputQuantizer
from probq.network.quantizers.plan import Plan
from probq.network.quantizers.vector import weight_quantizer
from probq.network.quantizers.weight import WeightQuantizer
from probq.network.tracing.layer import Layer, WeightTable
from probq.network.tracing.plain import plain_copy
from probq.network.tracing.product_calls import made_from
from probq.utils.errors import ProbqError

ORIGINALS = "originals."  # how the keys of what rounding moved begin
DTYPES = MappingProxyType(
    {str(d).removeprefix("torch."): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
)


def load(path: str | PathLike[str], net: nn.Module) -> Quantized:
    """Return the posterior of a file, on a copy of the network it was made for.

    It is ready to decide, and to continue with `fit`.

    Args:
        path: the path of a file that `Quantized.save` wrote.
        net: a network of the same sizes that computes the same; in the copy its weights are replaced by those of the
            file.

    Warns:
        UserWarning: where the file could not hold the budget's cost or the likelihood; give them again. Also where
            another version of probq or torch wrote it, so that it cannot be told whether the network is the same.

    Raises:
        ProbqError: if there is no such file, it is damaged, edited or of another kind, or it belongs to another
            network.
    """
    if not isinstance(net, nn.Module):
        raise ProbqError(f"load takes the network that was quantized, a torch.nn.Module, not {type(net).__name__}")
    (net, _), (manifest, tensors) = plain_copy(net), read(path)
    place_calls(path, net, manifest)
    check_fits(path, net, manifest, tensors)
    q = assemble(path, manifest, tensors, net)
    check_computes_the_same(path, q, manifest)
    several = manifest["budget"] if isinstance(manifest["budget"], list) else [manifest["budget"]]
    for entry in (*several, manifest["likelihood"]):
        if entry and entry.get("note"):
            warnings.warn(entry["note"], UserWarning, stacklevel=2)
    return q


def assemble(
    path: str | PathLike[str], manifest: dict[str, Any], tensors: Mapping[str, Tensor], net: nn.Module | None = None
) -> Quantized:
    """Return a quantized network, on `net` itself, from what `read` gave.

    Without `net` it has widths and costs, but cannot run.

    Raises:
        ProbqError: if the parts do not fit one another.
    """
    try:
        q = _assembled(manifest, tensors, nn.Module() if net is None else net)
        left = ENERGY if net is not None else (ENERGY, NET)
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith(left)}
        own |= {alias: own[owner] for alias, owner in manifest["tied"].items() if owner in own}
        missing, unexpected = q.load_state_dict(own, strict=False)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        raise ProbqError(f"{path} is not a valid posterior ({error!s:.200}); save it again") from error
    lost = [name for name in (*missing, *unexpected) if not name.endswith("_extra_state")]
    if lost:
        raise ProbqError(f"{path} is not a valid posterior: its tensors do not match at {lost[0]!r}; save it again")
    return q


def _assembled(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor], net: nn.Module) -> Quantized:
    """Return the object without the values of its tensors."""
    layers = tuple(_layer(entry) for entry in manifest["layers"])
    weights: dict[str, WeightQuantizer] = {}
    inputs: dict[str, InputQuantizer] = {}
    for name, entry in manifest["quantizers"].items():
        quantizer = _quantizer(entry)
        quantizer.to(tensors[f"quantizers.{name.replace('.', '/')}.log2_scale"].dtype)
        if isinstance(quantizer, WeightQuantizer):
            weights[name] = quantizer
        else:
            inputs[name] = quantizer
    tables: dict[str, Activation] = {}
    for name, (bits, signed) in manifest.get("activations", {}).items():
        tables[name] = Activation(int(bits), bool(signed), torch.empty(0, device="meta"), torch.clone)
        tables[name].to(tensors[f"tables.{name.replace('.', '/')}.input.log2_scale"].dtype)
    own = {name.removeprefix(LIKELIHOOD): tensor for name, tensor in tensors.items() if name.startswith(LIKELIHOOD)}
    likelihood, sites = likelihood_from_entry(manifest["likelihood"], own), manifest.get("sites", {})
    q = Quantized(net, layers, weights, inputs, tuple(manifest["notes"]), likelihood, tables, sites)
    q.steps.take({name: made_from(entry) for name, entry in manifest.get("calls", {}).items()})
    q.temperature, q.budget = float(manifest["temperature"]), _budgets(manifest["budget"])
    q.folded, q.calibrated = bool(manifest["folded"]), bool(manifest["calibrated"])
    q.signature = tuple((tuple(shape), DTYPES[dtype]) for shape, dtype in manifest["signature"])
    q.form = form_from_entry(manifest, [dtype for _, dtype in q.signature])
    q.uncounted, q.energy = int(manifest.get("uncounted", 0)), energy_from_entry(manifest, tensors)
    q.pairs = _pairs(q, tensors)
    _make_room_for_originals(q, tensors)
    q.held, frozen = tuple(manifest.get("held", ())), set(manifest["frozen"])
    for name, parameter in q.named_parameters():
        parameter.requires_grad_(parameter.is_floating_point() and name not in frozen)
    q.to(next((p.device for p in net.parameters()), torch.device("cpu")))
    return q if manifest["training"] else q.eval()


def _layer(entry: Mapping[str, Any]) -> Layer:
    tables = tuple(WeightTable(**one) for one in entry.get("tables", ()))
    return Layer(**{**entry, "shape": tuple(entry["shape"]), "tables": tables})


def _pairs(q: Quantized, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Return room for the prior's pairs of widths, if the file has any."""
    if "pairs" not in tensors:
        return None
    rungs = sum(len(quantizer.ladder) for _, quantizer in q.named_sites() if len(quantizer.ladder) > 1)
    if tensors["pairs"].shape != (rungs, rungs) or not torch.equal(tensors["pairs"], tensors["pairs"].T):
        raise ValueError(f"pairs of widths are not a symmetric matrix of {rungs} rungs")
    return torch.zeros_like(tensors["pairs"])


def _make_room_for_originals(q: Quantized, tensors: Mapping[str, Tensor]) -> None:
    """Make room for what rounding moved of the network, if the file has any."""
    there = q.net.state_dict()
    for key in tensors:
        if key.startswith(ORIGINALS):
            name = key.removeprefix(ORIGINALS).replace("/", ".")
            if there and (name not in there or there[name].shape != tensors[key].shape):
                raise ValueError(f"{key} is no tensor of its network")
            q.originals.make_room(name, torch.zeros_like(tensors[key]))


def _quantizer(entry: Mapping[str, Any]) -> WeightQuantizer | InputQuantizer:
    """Return a quantizer of the recorded shapes; meta tensors stand in for the data that would set its scales."""
    ladder = Ladder(tuple(codebook_from_entry(rung) for rung in entry["ladder"]))
    gates = tuple(entry["gates"])
    if entry["kind"] == "weight":
        shape = tuple(entry["shape"])
        shared = "tensor" if not gates else "weight" if gates == shape else "channel"
        scales = "channel" if entry["scales"] else "tensor"
        profile = entry.get("profile", "shift")
        laws = laws_from_entry(entry.get("laws", {})) | {"keep_zeros": entry.get("keep_zeros", False)}
        plan = Plan(weight=ladder, gates=shared, scales=scales, profile=profile, codes=entry["nearest"], **laws)
        meta = torch.empty(shape, device="meta")
        made: WeightQuantizer | InputQuantizer = weight_quantizer(meta, plan, entry["channel_axis"])
    else:
        laws = laws_from_entry(entry.get("laws", {}))
        made = InputQuantizer(ladder, torch.empty(0, device="meta"), laws.get("width_prior"), laws.get("estimator"))
    if entry["fixed"]:
        made.fixed = torch.zeros(gates, dtype=torch.int64)
    if entry.get("tuned"):
        made.tuned = torch.zeros(gates, dtype=torch.int64)
    return made


def _budgets(entry: Any) -> Budget | tuple[Budget, ...] | None:
    if isinstance(entry, list):
        return tuple(b for b in map(_budget, entry) if b is not None) or None
    return _budget(entry)


def _budget(entry: Mapping[str, Any] | None) -> Budget | None:
    if entry is None or "note" in entry:
        return None
    return Budget(entry["percent"], entry["limit"], cost_from_entry(entry), entry.get("probability"))
