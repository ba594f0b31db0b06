"""`quantize`, and `Quantized`: a network with a posterior over its widths and codes."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probq.activations import activations
from probq.assignment import Assignment
from probq.budget import Budgets
from probq.checks import check_seed
from probq.decide import codes, decided, decision, fix, onehots
from probq.decide import mode as most_probable
from probq.decide import sample as draws_within
from probq.errors import ProbqError
from probq.fold import fold, per_channel
from probq.frozen import freezing_notes, held_norms, respected
from probq.likelihoods import Likelihood
from probq.lowering.foreseen import foreseen_refusal
from probq.norms import checked_norms
from probq.plan import Plan, Planner, plan_for
from probq.program import Program
from probq.quantizer import InputQuantizer
from probq.random_stream import alone
from probq.rounding import code_levels
from probq.stacked import like, stacked
from probq.ties import tied_sites
from probq.tracing.arguments import arguments, first_rows, signature
from probq.tracing.layer import Layer
from probq.tracing.plain import plain
from probq.tracing.trace import trace
from probq.unfitted import warn_unfitted
from probq.untuned import untuned, warn_untuned
from probq.weight_quantizer import WeightQuantizer


class Quantized(Program):
    """A network with a posterior over the width of every quantizer and the code of every weight.

    Made by `quantize`, trained by `fit`. Calling it runs the network at its mode; see `Program` for its attributes,
    and for `model` and `guide`.
    """

    def mode(self, budget: Budgets = None, measured: bool = True) -> Assignment:
        """The most probable widths whose cost keeps the budget, and the most probable codes.

        Where `fit` had validation batches and measured that other widths do better, it is those it tuned the network
        for, and those are returned for the budget that it kept; the assignment's `gap` says by how many nats the most
        probable ones are more probable.

        Args:
            budget: the limit, or a list of limits that all hold; by default what was last fitted for, if anything.
            measured: False gives the most probable widths whatever was measured.

        Raises:
            ProbqError: if the budget is below the cheapest reachable cost.
        """
        decide = decision if measured else most_probable
        return decide(self, budget or self.budget)

    def sample(self, n: int, budget: Budgets = None, seed: int | None = None) -> list[Assignment]:
        """Draws from the posterior given that the cost keeps the budget; each one does.

        Args:
            n: number of draws.
            budget: the limit, or a list of limits that all hold; by default what was last fitted for, if anything.
            seed: makes the draws reproducible; by default torch's random state decides.

        Warns:
            UserWarning: if the posterior was never fitted.

        Raises:
            ProbqError: if the budget is below the cheapest reachable cost.
        """
        warn_unfitted(self)
        return self._drawn(n, budget, seed)

    def _drawn(self, n: int, budget: Budgets, seed: int | None) -> list[Assignment]:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ProbqError(f"sample takes a number of draws, 1 or more, not {n!r}")
        check_seed(seed)
        return draws_within(self, n, budget or self.budget, seed)

    def at(self, assignment: Assignment) -> Quantized:
        """A copy of the network with its widths fixed, batch normalisation folded, and its codes those decided.

        Args:
            assignment: from `mode` or `sample` of this network.

        Raises:
            ProbqError: if the assignment belongs to another network or plan.
        """
        with alone():
            fixed = copy.deepcopy(self)
        fixed.folded = True
        fix(fixed, assignment.widths)
        fixed._place(assignment)
        return fixed

    @torch.no_grad()
    def _place(self, assignment: Assignment) -> None:
        """Move the location of every weight whose nearest level is not its decided one onto that level."""
        current = codes(self, assignment.widths)
        chosen = onehots(self, assignment.widths)
        for name in self.weight_names:
            wanted = torch.as_tensor(np.asarray(assignment.codes[name]), device=self.device)
            if wanted.shape != current[name].shape:
                raise ProbqError(f"the assignment's codes for {name} do not fit; was it made for another network?")
            differ = wanted != torch.as_tensor(current[name], device=self.device)
            if differ.any():
                rung = self.rung(name, chosen[name])
                if self.weights[name].free_codes:
                    self.weights[name].place(int(chosen[name].argmax()), wanted)
                    continue
                value = (code_levels(rung.levels, wanted.long()) * rung.scale).expand_as(wanted)
                factor = torch.ones_like(value) if rung.factor is None else rung.factor.expand_as(wanted)
                factor = torch.where(factor == 0, torch.ones_like(factor), factor)  # a dead channel: any weight will do
                self.net.get_parameter(name)[differ] = (value / factor)[differ]

    def forward(self, *args: Any) -> Any:
        """The network's output at its mode: exactly what the integer model computes, in the inputs' precision."""
        with alone():
            if self.training and decided(self):
                return self._at_fixed(arguments(args), exact=False)
            return self._decided(self.mode(), args)

    def _at_fixed(self, args: tuple[Any, ...], exact: bool) -> Any:
        chosen = {name: quantizer.probs() for name, quantizer in self.named_quantizers()}
        levels = {
            n: self._code_law(n, w, self.rung(n, chosen[n]), nearest=1).rsample() for n, w in self.weights.items()
        }
        return self.run(chosen, levels, args, exact)

    @torch.no_grad()
    def _decided(self, assignment: Assignment, args: tuple[Any, ...]) -> Any:
        """Output at an assignment: evaluation mode, normalisation folded, float64 inside."""
        chosen = onehots(self, assignment.widths)
        with self.evaluating():
            levels = {
                name: code_levels(
                    self.rung(name, chosen[name]).levels,
                    torch.as_tensor(assignment.codes[name], device=self.device).long(),
                )
                for name in self.weight_names
            }
            try:
                return like(self.run(chosen, levels, args, exact=True), args)
            except RuntimeError:
                # a network with float32 constants of its own cannot run in float64; its own precision must do
                return self.run(chosen, levels, args)

    def outputs(self, assignments: list[Assignment], x: Any) -> list[Any]:
        """Outputs at several assignments, each exactly what its integer model computes, in the inputs' precision.

        Args:
            assignments: from `mode` or `sample` of this network; those that share all widths are computed together
                where the network has no convolutions.
            x: a batch of inputs, or a tuple of the network's arguments.
        """
        together = stacked(self, assignments, arguments(x)) if assignments else None
        if together is not None:
            return list(like(together, arguments(x)))
        return [self._decided(a, arguments(x)) for a in assignments]

    def predict(self, x: Any, draws: int = 16, seed: int | None = None, budget: Budgets = None) -> Tensor:
        """Outputs of networks drawn from the posterior, `[draws, batch, ...]`, one network a row.

        Args:
            x: a batch of inputs, or a tuple of the network's arguments.
            draws: number of networks.
            seed: makes the draws reproducible.
            budget: the limit that every drawn network keeps; by default the one last fitted for, if any.

        Warns:
            UserWarning: if the posterior was never fitted, or draws have other widths than the network was tuned at.
        """
        warn_unfitted(self)
        drawn = self._drawn(draws, budget, seed)
        warn_untuned(untuned(self, drawn), draws, "draws", "q.at(q.mode()).predict(...)")
        outputs = self.outputs(drawn, x)
        if not isinstance(outputs[0], Tensor):
            raise ProbqError(
                f"predict needs a network that returns one tensor, not a {type(outputs[0]).__name__}; "
                "for others, call q.at(a) for each a of q.sample(...)"
            )
        return torch.stack(outputs)

    def save(self, path: Any) -> None:
        """Write the posterior as safetensors with a JSON header; see `probq.load`."""
        from probq.posterior import save

        with alone():
            save(self, path)

    def __repr__(self) -> str:
        lines = [f"Quantized({type(self.net).__name__}: {len(self.layers)} layers, {len(self.quantizers)} quantizers"]
        lines += [f"  {name}: {q.ladder.bits} bits" for name, q in self.named_quantizers()]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)]) + ")"


@torch.inference_mode(False)
def quantize(
    net: nn.Module, example: Any, plan: Planner | None = None, likelihood: Likelihood | None = None
) -> Quantized:
    """A quantized copy of a trained network, ready for `fit`; the network itself is left untouched.

    Args:
        net: any `torch.nn.Module`; its linear, convolution and embedding layers are quantized.
        example: a batch of inputs (batch axis first), or a tuple of the network's arguments. It shows which layers
            are reached and sets the first scales, so real data is better than noise.
        plan: a `Plan`, or a function `Layer -> Plan | None` (None leaves that layer in float).
        likelihood: function from the network's output to a `torch.distributions` law; by default `fit` chooses by
            the targets.

    Warns:
        UserWarning: for every operation that stays float although no plan said so, and where `lower` will refuse the
            network at any widths; `notes` lists them.

    Raises:
        ProbqError: if nothing can be quantized, the example does not fit or misses a layer, a weight is not finite,
            or the plan is not one.
    """
    if not isinstance(net, nn.Module):
        raise ProbqError(f"quantize takes a torch.nn.Module, not {type(net).__name__}")
    copied, notes = plain(net)
    found = trace(copied, example)
    layers = checked_norms(copied, found, example)
    weights: dict[str, WeightQuantizer] = {}
    inputs: dict[str, InputQuantizer] = {}
    ties: dict[str, list[str]] = {}
    notes += found.notes
    plans: dict[str, Plan | None] = {}
    for place, layer in enumerate(layers):
        own = plans[layer.name] = respected(plan_for(Plan() if plan is None else plan, layer), copied, layer)
        if own is None:
            layers[place] = replace(layer, norm=None)  # nothing is folded into what stays float
            notes.append(f"{layer.name} stays float, as planned; it counts as 32 x 32 bits")
            continue
        own.check(layers[place], layers)
        if layer.weight not in weights:
            weights[layer.weight] = _weight_quantizer(copied, layers[place], own)
            if own.tie_weight is not None:
                ties.setdefault(own.tie_weight, []).append(layer.weight)
        if layer.input is not None:
            sample = found.inputs[layer.name]
            inputs[layer.input] = InputQuantizer(own.input_ladder(layer), sample, own.input_prior, own.estimator)
            # a scale to train would ask for the gradient of the first layer's input, for a power of two that stays
            inputs[layer.input].log2_scale.requires_grad_(not layer.first or len(inputs[layer.input].ladder) > 1)
            if own.tie_input is not None and not layer.first:
                ties.setdefault(own.tie_input, []).append(layer.input)
    if not weights:
        raise ProbqError("the plan leaves every layer in float; let it return a Plan for at least one layer")
    for note in found.notes:
        warnings.warn(note, UserWarning, stacklevel=3)  # past the decorator, at the caller
    notes += freezing_notes(copied)
    tables = activations(copied, found, plans)
    sites = tied_sites(ties, weights, inputs)
    quantized = Quantized(copied, tuple(layers), weights, inputs, tuple(notes), likelihood, tables, sites)
    quantized.signature, quantized.example = signature(example), first_rows(example)
    quantized.held, quantized.uncounted = held_norms(copied), found.uncounted
    _foresee(quantized, warn=all(own is not None and own.activation for own in plans.values()))
    return quantized.train(net.training)


def _foresee(q: Quantized, warn: bool) -> None:
    """Note, and warn of, what will keep the network from becoming integers, before time is spent on its fit."""
    refusal = foreseen_refusal(q)
    if refusal:
        note = f"probq.lower will refuse this network: {refusal}"
        q.notes = (*q.notes, note)
        if warn:
            warnings.warn(note, UserWarning, stacklevel=4)


def _weight_quantizer(net: nn.Module, layer: Layer, plan: Plan) -> WeightQuantizer:
    trained = net.get_parameter(layer.weight).detach()
    return WeightQuantizer(_as_shipped(net, layer, plan.multipliers), plan, layer.channel_axis, trained)


def _as_shipped(net: nn.Module, layer: Layer, multipliers: int) -> Tensor:
    """A layer's weight, in units of which the scales are set: with that of a folded gain which no scale follows.

    Scales set on the plain weight would clip the folded one.
    """
    folded = fold(net, layer)
    weight = net.get_parameter(layer.weight).detach()
    return weight if folded is None else weight * per_channel(folded.rest(multipliers), layer)
