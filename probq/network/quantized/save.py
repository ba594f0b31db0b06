"""A posterior is saved as its tensors, and all else as JSON."""

from __future__ import annotations

from dataclasses import asdict
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from probq.codebooks.entries import to_entry as codebook_to_entry
from probq.cost.budget import Budget, Budgets, budgets
from probq.cost.entries import to_entry as cost_to_entry
from probq.likelihoods import Likelihood
from probq.likelihoods.entries import to_entry as likelihood_to_entry
from probq.network.explicit.modules import spelled_out
from probq.network.normalisers.masks import holds_numbers
from probq.network.program.program import Program
from probq.network.quantized.energy_entry import energy_to_entry
from probq.network.quantized.file_format import write
from probq.network.quantized.fingerprint import fingerprint
from probq.network.quantized.form_entry import form_to_entry
from probq.network.quantized.law_entries import laws_to_entry
from probq.network.quantized.network_entry import place
from probq.network.quantizers.base import Quantizer
from probq.network.quantizers.weight import WeightQuantizer
from probq.network.tracing.layer import Layer
from probq.network.tracing.stand_ins import stand_ins
from probq.utils.errors import ProbqError
from probq.utils.version import probq_version

LIKELIHOOD = "likelihood."  # how the keys of its tensors begin


def save(q: Program, path: str | PathLike[str]) -> None:
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
        if not holds_numbers(tensor):
            raise ProbqError(f"{name} holds a number that is not finite, so nothing is saved; fit again")
    energy, numbers = energy_to_entry(q.energy)
    content = {
        "layers": [_layer_entry(layer) for layer in q.layers],
        "quantizers": {name: _quantizer_entry(quantizer) for name, quantizer in q.named_quantizers()},
        "activations": {name: [a.bits, a.signed] for name, a in q.activations.items()},
        "tied": tied,
        "sites": q.sites,
        "held": list(q.held),
        "uncounted": q.uncounted,
        "frozen": [name for name, parameter in q.named_parameters() if not parameter.requires_grad],
        "signature": [[list(shape), str(dtype).removeprefix("torch.")] for shape, dtype in q.signature],
        "fingerprint": fingerprint(q.net, q.signature, q.form),
        "temperature": q.temperature,
        "budget": budget,
        "likelihood": likelihood,
        "calibrated": q.calibrated,
        "folded": q.folded,
        "training": q.training,
        "notes": notes,
        "versions": {"probq": probq_version(), "torch": str(torch.__version__)},
        **energy,
        **form_to_entry(q),
    }
    if calls := {name: one.entry for name, one in stand_ins(q.net)}:
        content["calls"] = calls
    if explicit := list(spelled_out(q.net)):
        content["explicit"] = explicit
    write(path, content, tensors | numbers)


def _tensors(q: Program, keep_likelihood: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return every tensor once, and for each name of a tied one the name it is stored under."""
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


def _layer_entry(layer: Layer) -> dict[str, Any]:
    """Return what a file says of a layer; few have numbers in a second tensor, a memory, or tables."""
    entry = asdict(layer)
    left_out = [*["others"] * (not layer.is_product), *["memory"] * (not layer.memory)]
    left_out += ["tables"] * (not layer.tables)
    return {name: value for name, value in entry.items() if name not in left_out}


def _quantizer_entry(quantizer: Quantizer) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "kind": "weight" if isinstance(quantizer, WeightQuantizer) else "input",
        "ladder": [codebook_to_entry(rung) for rung in quantizer.ladder.rungs],
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
    cost = cost_to_entry(budget.cost)
    if cost is None:
        notes.append(f"{budget!r} was not saved, because a file cannot hold its cost; give it to fit, mode and sample")
        return {"note": notes[-1]}
    chance = {} if budget.probability is None else {"probability": budget.probability}
    return {"percent": budget.percent, "limit": budget.limit, **cost, **chance}


def _likelihood_entry(likelihood: Likelihood | None, notes: list[str]) -> dict[str, Any]:
    entry = likelihood_to_entry(likelihood)
    if entry is not None:
        return entry
    name = getattr(likelihood, "__name__", type(likelihood).__name__)
    notes.append(f"the likelihood {name} was not saved, because a file cannot hold a function; give it to fit again")
    return {"kind": "none", "note": notes[-1]}
