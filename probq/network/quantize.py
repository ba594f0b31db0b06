"""`quantize` leads from a trained network to one with a posterior over its widths and codes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from probq.codebooks import Grid
from probq.integer.lowering.foreseen import foreseen_refusal
from probq.likelihoods import Likelihood
from probq.likelihoods.network_likelihood import check_likelihood
from probq.network.matrices.matrix import Matrix
from probq.network.program.constant_outputs import constant_note
from probq.network.program.foldable import check_norms
from probq.network.program.folding import as_shipped
from probq.network.program.frozen import freezing_notes, held_norms, keep_frozen
from probq.network.program.width_prior import set_width_prior
from probq.network.quantized.quantized import Quantized
from probq.network.quantizers.activation import activations
from probq.network.quantizers.base import InputQuantizer
from probq.network.quantizers.plan import Plan, Planner, plan_for
from probq.network.quantizers.ties import tied_sites
from probq.network.quantizers.vector import importance_of, tables_of, weight_quantizer
from probq.network.quantizers.weight import WeightQuantizer
from probq.network.tracing.arguments import first_rows, form_of, own_copy, signature
from probq.network.tracing.layer import Layer
from probq.network.tracing.plain import in_single_precision, plain_copy
from probq.network.tracing.product_calls import LayerCall
from probq.network.tracing.stand_ins import stand_ins
from probq.network.tracing.trace import Tracing, trace_network
from probq.priors.energies.energy import Energy
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import map_tensors


@torch.inference_mode(False)
def quantize(
    net: nn.Module, example: Any, plan: Planner | None = None, likelihood: Likelihood | None = None
) -> Quantized:
    """Return a quantized copy of a trained network, ready for `fit`; the network itself is left untouched.

    Args:
        net: any `torch.nn.Module`; its linear, convolution and embedding layers are quantized. In the copy, attention,
            LSTM and GRU are such layers and products, as in that of `probq.explicit`, and what is of half precision
            is float32; notes say so.
        example: a batch of inputs (batch axis first), a tuple of the network's arguments, or a dictionary of them by
            keyword; each may hold tensors in tuples, lists and dictionaries. It shows which layers
            are reached and sets the first scales, so real data is better than noise.
        plan: a `Plan`, or a function `Layer -> Plan | None` (None leaves that layer in float).
        likelihood: function from the network's output to a `torch.distributions` law; by default `fit` chooses by
            the targets.

    Warns:
        UserWarning: for every operation that stays float although no plan said so, and where `lower` will refuse the
            network at any widths; `notes` lists them.

    Raises:
        ProbqError: if nothing can be quantized, the example does not fit or misses a layer, a weight is not finite,
            or the plan or the likelihood is not one.
    """
    if not isinstance(net, nn.Module):
        raise ProbqError(f"quantize takes a torch.nn.Module, not {type(net).__name__}")
    check_likelihood(likelihood)
    copied, notes = plain_copy(net)
    example = map_tensors(in_single_precision, example)
    found = trace_network(copied, own_copy(example))
    layers = check_norms(copied, found, example)
    weights: dict[str, WeightQuantizer] = {}
    inputs: dict[str, InputQuantizer] = {}
    ties: dict[str, list[str]] = {}
    notes += [*(_explicit_note(name, copied) for name in found.explicit), *found.quiet, *found.notes]
    plans: dict[str, Plan | None] = {}
    for place, layer in enumerate(layers):
        views = [layers[place], *([found.seconds[layer.name]] if layer.is_product else ())]
        owns = [keep_frozen(plan_for(Plan() if plan is None else plan, view), copied, view) for view in views]
        own = plans[layer.name] = owns[0] if owns[-1] is not None else None
        if own is None:
            layers[place] = replace(layer, norm=None)  # nothing is folded into what stays float
            notes.append(f"{layer.name} stays float, as planned; it counts as 32 x 32 bits")
            continue
        own.check(layers[place], layers)
        if layer.weight not in weights and not layer.is_product:
            weights[layer.weight] = _weight_quantizer(copied, layers[place], own, found)
            if own.tie_weight is not None:
                ties.setdefault(own.tie_weight, []).append(layer.weight)
        if layer.weight in weights:
            layers[place] = replace(layers[place], tables=tables_of(weights[layer.weight].ladder))
        for view, one in zip(views, owns, strict=True):
            if view.input is not None and one is not None and view.input not in inputs:
                inputs[view.input] = _input_quantizer(found, view, one)
                if one.tie_input is not None and not view.first:
                    ties.setdefault(one.tie_input, []).append(view.input)
    if not weights:
        raise ProbqError("the plan leaves every layer in float; let it return a Plan for at least one layer")
    for note in found.notes:
        warnings.warn(note, UserWarning, stacklevel=3)  # past the decorator, at the caller
    notes += [*_computed_notes(copied), *freezing_notes(copied)]
    tables = activations(copied, found, plans)
    sites = tied_sites(ties, weights, inputs)
    quantized = Quantized(copied, tuple(layers), weights, inputs, tuple(notes), likelihood, tables, sites)
    _tell(quantized, found, example)
    _set_energy(quantized, [own for own in plans.values() if own is not None])
    _foresee(quantized, warn=all(own is not None and own.activation for own in plans.values()))
    return quantized.train(net.training)


def _tell(q: Quantized, found: Tracing, example: Any) -> None:
    """Tell a network what was found on its example."""
    q.steps.take(dict(stand_ins(q.net)), found.calls)
    q.signature, q.example, q.form = signature(example), first_rows(example), form_of(example)
    q.held, q.uncounted = held_norms(q.net), found.uncounted
    q.notes += constant_note(q)


def _explicit_note(name: str, net: nn.Module) -> str:
    kind = type(net.get_submodule(name)).__name__
    parts = {
        "MultiheadAttention": "linear layers q_proj, k_proj, v_proj and out_proj, two products and a softmax",
        "LSTM": "linear layers ih and hh of each layer and direction, three products of gates, and tables",
        "GRU": "linear layers ih and hh of each layer and direction, two products of gates, and tables",
    }
    return f"{name} ({kind}) is spelled out in the quantized copy, as by probq.explicit: {parts[kind]}"


def _computed_notes(net: nn.Module) -> list[str]:
    """Return sentences on the weights of functions' calls that are none of the network's own tensors."""
    own = [f"{name}.layer.weight" for name, call in stand_ins(net) if isinstance(call, LayerCall) and call.owns]
    return [
        f"{name} is what the forward computes of other tensors than its input, or makes itself; it is a weight of its "
        "own from here on, and those are used no more where it stands"
        for name in own
    ]


def _set_energy(q: Quantized, plans: Sequence[Plan]) -> None:
    """Make an energy that the plans have for a prior that of the network's widths."""
    priors = [plan.width_prior for plan in plans]
    energy = next((prior for prior in priors if isinstance(prior, Energy)), None)
    if energy is None:
        return
    if any(prior is not energy for prior in priors):
        raise ProbqError("an energy is the prior of all widths: give the same Plan(width_prior=energy) to every layer")
    set_width_prior(q, energy)


def _foresee(q: Quantized, warn: bool) -> None:
    """Note, and warn of, what will keep the network from becoming integers, before time is spent on its fit."""
    refusal = foreseen_refusal(q)
    if refusal:
        note = f"probq.lower will refuse this network: {refusal}"
        q.notes = (*q.notes, note)
        if warn:
            warnings.warn(note, UserWarning, stacklevel=4)


def _input_quantizer(found: Tracing, layer: Layer, plan: Plan) -> InputQuantizer:
    sample = found.inputs[str(layer.input).removesuffix(".input")]
    made = InputQuantizer(plan.input_ladder(layer), sample, plan.input_prior, plan.estimator)
    # a scale to train would ask for the gradient of the first layer's input, for a power of two that stays
    made.log2_scale.requires_grad_(not layer.first or len(made.ladder) > 1)
    return made


def _weight_quantizer(net: nn.Module, layer: Layer, plan: Plan, found: Tracing) -> WeightQuantizer:
    trained = net.get_parameter(layer.weight).detach()
    if (least := float(trained.min())) < 0:
        grids = [rung for rung in plan.weight.rungs if isinstance(rung, Grid) and rung.bits]
        cut = [grid.bits for grid in grids if float(grid.levels()[0]) >= 0]
        if cut:
            warnings.warn(
                f"{layer.weight} has negative values (least: {least:.3g}) but no negative levels at {cut[0]} bits; "
                "they will be cut off. Use ladder(..., signed=True)",
                UserWarning,
                stacklevel=4,
            )
    if len({reader.channel_axis for reader in found.layers if reader.weight == layer.weight}) > 1:
        plan = replace(plan, profile="shift")  # along a reader's inputs scales must divide one another
    importance = None
    if plan.weight.has_vectors:
        if isinstance(net.get_submodule(layer.name), Matrix):
            raise ProbqError(
                f"{layer.weight} is multiplied with its axes in another order, so its rows are no vectors; give "
                f"{layer.name} a ladder of widths, or make it an nn.Linear"
            )
        importance = importance_of(layer.shape, found.inputs.get(layer.name), layer.transposed)
    try:
        weight = as_shipped(net, layer, plan.multipliers)
        return weight_quantizer(weight, plan, layer.channel_axis, trained, importance)
    except ProbqError as error:
        raise ProbqError(f"{layer.weight}: {error}") from error
