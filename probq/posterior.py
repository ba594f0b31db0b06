"""The file of a posterior: a safetensors file of the quantized network's tensors and a JSON manifest; never pickle."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from probq import cost as costs
from probq.activations import Activation
from probq.budget import Budget, Budgets, budgets
from probq.codebooks import Codebook, Grid, Ladder, Table
from probq.cost_table import CostTable
from probq.errors import ProbqError
from probq.likelihoods import Categorical, Likelihood, Normal, categorical
from probq.plan import Plan
from probq.posterior_format import read, write
from probq.posterior_laws import laws_from_entry, laws_to_entry
from probq.posterior_network import NET, check_computes_the_same, check_fits, place
from probq.quantized import Quantized
from probq.quantizer import InputQuantizer, Quantizer
from probq.tracing.fingerprint import fingerprint
from probq.tracing.layer import Layer
from probq.tracing.plain import plain
from probq.versions import probq_version
from probq.weight_quantizer import WeightQuantizer

DTYPES = MappingProxyType(
    {str(d).removeprefix("torch."): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
)
# costs that a file can name
COSTS = (
    costs.bops, costs.pruned_bops, costs.ebops, costs.storage, costs.activations, costs.largest_activation,
)  # fmt: skip
LIKELIHOOD = "likelihood."  # how the keys of its tensors begin


def save(q: Quantized, path: str | PathLike[str]) -> None:
    """Write a posterior: every tensor of `q.state_dict()` under its own key, and all else as JSON under `probq`.

    The same posterior always gives the same bytes, and the file appears whole or not at all. What a file cannot hold,
    a budget on a cost of the user's own and a likelihood of the user's own, is left out; a note in `notes` says so.

    Raises:
        ProbqError: if the file cannot be written, or a number is not finite; what stands at the path then stays.
    """
    notes = list(q.notes)
    budget, likelihood = _budget_entries(q.budget, notes), _likelihood_entry(q.likelihood, notes)
    tensors, tied = _tensors(q, keep_likelihood=likelihood["kind"] != "none")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ProbqError(f"{name} holds a number that is not finite, so nothing is saved; fit again")
    content = {
        "layers": [asdict(layer) for layer in q.layers],
        "quantizers": {name: _quantizer_entry(quantizer) for name, quantizer in q.named_quantizers()},
        "activations": {name: [a.bits, a.signed] for name, a in q.activations.items()},
        "tied": tied,
        "sites": q.sites,
        "held": list(q.held),
        "uncounted": q.uncounted,
        "frozen": [name for name, parameter in q.named_parameters() if not parameter.requires_grad],
        "signature": [[list(shape), str(dtype).removeprefix("torch.")] for shape, dtype in q.signature],
        "fingerprint": fingerprint(q.net, q.signature),
        "temperature": q.temperature,
        "budget": budget,
        "likelihood": likelihood,
        "calibrated": q.calibrated,
        "folded": q.folded,
        "training": q.training,
        "notes": notes,
        "versions": {"probq": probq_version(), "torch": str(torch.__version__)},
    }
    write(path, content, tensors)


def load(path: str | PathLike[str], net: nn.Module) -> Quantized:
    """The posterior of a file, on a copy of the network it was made for; ready to decide, and to continue with `fit`.

    Args:
        path: of a file that `Quantized.save` wrote.
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
    (net, _), (manifest, tensors) = plain(net), read(path)
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
    """A quantized network, on `net` itself, from what `read` gave. Without one it has widths and costs, but cannot run.

    Raises:
        ProbqError: if the parts do not fit one another.
    """
    try:
        q = _assembled(manifest, tensors, nn.Module() if net is None else net)
        own = {name: tensor for name, tensor in tensors.items() if net is not None or not name.startswith(NET)}
        own |= {alias: own[owner] for alias, owner in manifest["tied"].items() if owner in own}
        missing, unexpected = q.load_state_dict(own, strict=False)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        raise ProbqError(f"{path} is not a valid posterior ({error!s:.200}); save it again") from error
    lost = [name for name in (*missing, *unexpected) if not name.endswith("_extra_state")]
    if lost:
        raise ProbqError(f"{path} is not a valid posterior: its tensors do not match at {lost[0]!r}; save it again")
    return q


def _assembled(manifest: Mapping[str, Any], tensors: Mapping[str, Tensor], net: nn.Module) -> Quantized:
    """The object without the values of its tensors."""
    layers = tuple(Layer(**{**entry, "shape": tuple(entry["shape"])}) for entry in manifest["layers"])
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
    likelihood, sites = _likelihood(manifest["likelihood"], tensors), manifest.get("sites", {})
    q = Quantized(net, layers, weights, inputs, tuple(manifest["notes"]), likelihood, tables, sites)
    q.temperature, q.budget = float(manifest["temperature"]), _budgets(manifest["budget"])
    q.folded, q.calibrated = bool(manifest["folded"]), bool(manifest["calibrated"])
    q.signature = tuple((tuple(shape), DTYPES[dtype]) for shape, dtype in manifest["signature"])
    q.uncounted = int(manifest.get("uncounted", 0))
    q.held, frozen = tuple(manifest.get("held", ())), set(manifest["frozen"])
    for name, parameter in q.named_parameters():
        parameter.requires_grad_(parameter.is_floating_point() and name not in frozen)
    q.to(next((p.device for p in net.parameters()), torch.device("cpu")))
    return q if manifest["training"] else q.eval()


def _quantizer(entry: Mapping[str, Any]) -> WeightQuantizer | InputQuantizer:
    """A quantizer of the recorded shapes; meta tensors stand in for the data that would set its scales."""
    ladder = Ladder(tuple(_codebook(rung) for rung in entry["ladder"]))
    gates = tuple(entry["gates"])
    if entry["kind"] == "weight":
        shape = tuple(entry["shape"])
        shared = "tensor" if not gates else "weight" if gates == shape else "channel"
        scales = "channel" if entry["scales"] else "tensor"
        profile = entry.get("profile", "shift")
        laws = laws_from_entry(entry.get("laws", {})) | {"keep_zeros": entry.get("keep_zeros", False)}
        plan = Plan(weight=ladder, gates=shared, scales=scales, profile=profile, codes=entry["nearest"], **laws)
        made: WeightQuantizer | InputQuantizer = WeightQuantizer(
            torch.empty(shape, device="meta"), plan, entry["channel_axis"]
        )
    else:
        laws = laws_from_entry(entry.get("laws", {}))
        made = InputQuantizer(ladder, torch.empty(0, device="meta"), laws.get("width_prior"), laws.get("estimator"))
    if entry["fixed"]:
        made.fixed = torch.zeros(gates, dtype=torch.int64)
    if entry.get("tuned"):
        made.tuned = torch.zeros(gates, dtype=torch.int64)
    return made


def _codebook(entry: Mapping[str, Any]) -> Codebook:
    return Table(tuple(entry["values"]), bool(entry["learned"])) if "values" in entry else Grid(**entry)


def _budgets(entry: Any) -> Budget | tuple[Budget, ...] | None:
    if isinstance(entry, list):
        return tuple(b for b in map(_budget, entry) if b is not None) or None
    return _budget(entry)


def _budget(entry: Mapping[str, Any] | None) -> Budget | None:
    if entry is None or "note" in entry:
        return None
    if "table" in entry:
        rows = {(str(layer), int(w), int(a)): float(cost) for layer, w, a, cost in entry["table"]}
        cost: costs.Cost = CostTable(rows, str(entry["cost"]))
    else:
        cost = next(c for c in COSTS if costs.name(c) == entry["cost"])
    return Budget(entry["percent"], entry["limit"], cost, entry.get("probability"))


def _likelihood(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Likelihood | None:
    if entry["kind"] == "normal":
        return Normal(None if entry["learned"] else entry["sd"])
    if "axis" in entry:
        return Categorical(entry["axis"], tensors.get(f"{LIKELIHOOD}weight"), entry["ignore_index"])
    return categorical if entry["kind"] == "categorical" else None


def _tensors(q: Quantized, keep_likelihood: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, and for each name of a tied one the name it is stored under."""
    stored: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    owners: dict[Any, str] = {}
    for name, tensor in q.state_dict().items():
        if not isinstance(tensor, Tensor) or (name.startswith(LIKELIHOOD) and not keep_likelihood):
            continue
        owner = owners.setdefault(place(tensor) or name, name)
        if owner == name:
            stored[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        else:
            tied[name] = owner
    return stored, tied


def _quantizer_entry(quantizer: Quantizer) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "kind": "weight" if isinstance(quantizer, WeightQuantizer) else "input",
        "ladder": [asdict(rung) for rung in quantizer.ladder.rungs],
        "gates": list(quantizer.gates),
        "scales": list(quantizer.log2_scale.shape[1:]),
        "fixed": quantizer.fixed is not None,
        "tuned": quantizer.tuned is not None,
    }
    if isinstance(quantizer, WeightQuantizer):
        entry |= {"shape": quantizer.shape, "channel_axis": quantizer.channel_axis, "nearest": quantizer.nearest}
        entry |= {"profile": "shift" if quantizer.multipliers == 1 else "dyadic"}
        entry |= {} if quantizer.zeros is None else {"keep_zeros": True}
    laws = laws_to_entry(quantizer)
    return entry | {"laws": laws} if laws else entry


def _budget_entries(budget: Budgets, notes: list[str]) -> Any:
    entries = [_budget_entry(one, notes) for one in budgets(budget)]
    return entries if len(entries) > 1 else entries[0] if entries else None


def _budget_entry(budget: Budget, notes: list[str]) -> dict[str, Any]:
    if isinstance(budget.cost, CostTable):
        table = [[*key, cost] for key, cost in budget.cost.entries.items()]
        return {"percent": budget.percent, "limit": budget.limit, "cost": budget.cost.label, "table": table}
    if budget.cost not in COSTS:
        notes.append(f"{budget!r} was not saved, because a file cannot hold its cost; give it to fit, mode and sample")
        return {"note": notes[-1]}
    chance = {} if budget.probability is None else {"probability": budget.probability}
    return {"percent": budget.percent, "limit": budget.limit, "cost": costs.name(budget.cost), **chance}


def _likelihood_entry(likelihood: Likelihood | None, notes: list[str]) -> dict[str, Any]:
    if likelihood is None or likelihood is categorical:
        return {"kind": "none" if likelihood is None else "categorical"}
    if type(likelihood) is Categorical:
        return {"kind": "categorical", "axis": likelihood.axis, "ignore_index": likelihood.ignore_index}
    if type(likelihood) is Normal:
        return {
            "kind": "normal",
            "learned": likelihood.log_sd.requires_grad,
            "sd": float(likelihood.log_sd.detach().exp()),
        }
    name = getattr(likelihood, "__name__", type(likelihood).__name__)
    notes.append(f"the likelihood {name} was not saved, because a file cannot hold a function; give it to fit again")
    return {"kind": "none", "note": notes[-1]}
