"""A network is called here with levels for weights and with rounded inputs of its layers; nothing is probable yet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from probq import cost as costs
from probq.cost.expectation import CostTables
from probq.cost.totals import expected_cost
from probq.estimators import drawn_law
from probq.estimators.estimator import OfRung
from probq.likelihoods import Likelihood
from probq.network.program.biases import accumulator_step, rounded_bias
from probq.network.program.folding import Fold, fold, shift_bias
from probq.network.program.headroom import leave_headroom
from probq.network.program.originals import Originals
from probq.network.program.substitution import NO_NOISE, substitute
from probq.network.quantizers.activation import Activation, hooks
from probq.network.quantizers.affine_norms import affine_norms
from probq.network.quantizers.base import InputQuantizer, Quantizer, Rung, rounder
from probq.network.quantizers.steps import Steps
from probq.network.quantizers.weight import WeightQuantizer
from probq.network.tracing.layer import Layer
from probq.network.tracing.module_kinds import NORMS
from probq.network.tracing.routing import first_operands
from probq.priors.energies.energy import Energy
from probq.utils.random_stream import exclusive
from probq.utils.structures.tensors import arguments


class Network(nn.Module):
    """A network is a copy of the user's, the quantizers of its weights and inputs, and the call that joins them.

    Its parameters are the posterior: gate logits, scales and spreads, and the own weights as locations of the codes.

    Attributes:
        net: a copy of the user's network.
        layers: its layers.
        weights, inputs: quantizers by name (`conv1.weight`, `conv1.input`).
        activations: the roundings around non-linear functions, by module name.
        steps: the roundings around operations with constants.
        notes: sentences on everything that stays float.
        likelihood: law of the target given the output; None until `fit` sees the targets.
        temperature: factor of all KL terms (1 is the Bayesian posterior, below 1 a "cold" one).
        budget: the last budget fitted for, or a tuple of several; what `mode` and `sample` keep unless told otherwise.
        energy: by which `post_training` chose the widths, or what `fit` and `decide` have measured of them; else None.
        folded: whether batch normalisation is folded into the layers, as in everything that is decided.
        rounding: whether codes are rounded deterministically instead of drawn.
        calibrated: whether the inputs' scales were set from data.
        signature: shape without the batch, and type, of the tensors among the arguments `form`, which are empty there.
        example: the arguments that `quantize` was given, a few rows of them; none in a loaded posterior.
        pairs: energies of pairs of widths in the prior in nats, `[R, R]` over all rungs; None where there are none.
        held: names of the batch normalisations whose statistics stay what they are.
        uncounted: MACs of one example outside of all layers, which no cost counts.
        originals: what rounding has moved of a decided network, as it was.
        sites: for each quantizer that a plan tied to an earlier one, the name of that one.
        began: folder of the checkpoints that the last fit wrote, and what the network was when that fit began; or None.
    """

    def __init__(
        self,
        net: nn.Module,
        layers: tuple[Layer, ...],
        weights: Mapping[str, WeightQuantizer],
        inputs: Mapping[str, InputQuantizer],
        notes: tuple[str, ...] = (),
        likelihood: Likelihood | None = None,
        activations: Mapping[str, Activation] | None = None,
        sites: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.layers, self.notes, self.originals = net, layers, notes, Originals()
        self._by_name: dict[str, Quantizer] = {**weights, **inputs}
        self.quantizers = nn.ModuleDict({name.replace(".", "/"): q for name, q in self._by_name.items()})
        self.weight_names, self.input_names = tuple(weights), tuple(inputs)
        self.tables = nn.ModuleDict({name.replace(".", "/"): a for name, a in (activations or {}).items()})
        self.sites, self.steps = dict(sites or {}), Steps()
        for name, site in self.sites.items():
            self.quantizer(name).logits = self.quantizer(site).logits
        self.likelihood, self.temperature, self.uncounted = likelihood, 1.0, 0
        self.budget: Any = None
        self.energy: Energy | None = None
        self.began: tuple[str, Mapping[str, str]] | None = None
        self.folded, self.rounding, self.calibrated = False, False, False
        self.held: tuple[str, ...] = ()
        self.pairs: Tensor | None
        self.register_buffer("pairs", None)
        self.signature: tuple[tuple[tuple[int, ...], torch.dtype], ...] = ()
        self.form: tuple[Any, ...] = ()
        self.example: tuple[Any, ...] = ()

    @property
    def weights(self) -> dict[str, WeightQuantizer]:
        """Return the weight quantizers by name."""
        return {name: self._by_name[name] for name in self.weight_names}  # type: ignore[misc]

    @property
    def inputs(self) -> dict[str, InputQuantizer]:
        """Return the input quantizers by name."""
        return {name: self._by_name[name] for name in self.input_names}  # type: ignore[misc]

    @property
    def activations(self) -> dict[str, Activation]:
        """Return the roundings around non-linear functions, by module name."""
        return {name.replace("/", "."): table for name, table in self.tables.items()}  # type: ignore[misc]

    def quantizer(self, name: str) -> Quantizer:
        """Return the quantizer of one name, for example `conv1.weight`."""
        return self._by_name[name]

    def named_quantizers(self) -> Iterator[tuple[str, Quantizer]]:
        """Return all quantizers, weights first."""
        yield from self._by_name.items()

    @property
    def device(self) -> torch.device:
        """Return the device of the parameters."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> Any:
        """Set training mode, with folded and held batch normalisation frozen: what ships is what is trained."""
        super().train(mode)
        for name, module in self.net.named_modules():
            if isinstance(module, NORMS) and (self.folded or name in self.held):
                module.eval()
        return self

    def named_sites(self) -> Iterator[tuple[str, Quantizer]]:
        """Return the quantizers with a width of their own; of those that are tied, this is the first one."""
        yield from ((name, quantizer) for name, quantizer in self.named_quantizers() if name not in self.sites)

    def cost_tables(self, cost: costs.Cost = costs.bops) -> CostTables:
        """Return the cost of every pair of widths of every layer, for `expected_cost`."""
        tables = []
        for layer in self.layers:
            weight, x = (
                self.quantizer(name).ladder.bits if name is not None and name in self else (costs.FLOAT_BITS,)
                for name in (layer.weight, layer.input)
            )
            tables.append((layer, torch.as_tensor(costs.pairs(layer, weight, x, cost), device=self.device)))
        reads = self._reads() if costs.as_network_cost(cost).sees_pruned else {}
        return CostTables(cost, tuple(tables), self.sites, reads)

    def _reads(self) -> dict[str, str]:
        """Return the weight that each layer reads, if that one has a gate for each channel and may prune it."""
        channels = {layer.weight: layer.channels for layer in reversed(self.layers) if not layer.is_product}
        result = {}
        for layer in self.layers:
            if layer.reads is not None and layer.reads in self.weight_names:
                quantizer = self.quantizer(layer.reads)
                each = bool(quantizer.gates) and math.prod(quantizer.gates) == channels[layer.reads]
                if each and quantizer.ladder.bits[0] == 0:
                    result[layer.name] = layer.reads
        return result

    def expected_cost(self, tables: CostTables, probs: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return `E[cost]` exactly, under the posterior or laws `probs` of widths, a float64 scalar with gradients."""
        laws = {name: quantizer.probs() for name, quantizer in self.named_quantizers()} if probs is None else probs
        return expected_cost(tables, laws)

    def __contains__(self, name: Any) -> bool:
        return name in self.weight_names or name in self.input_names

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Set evaluation mode and fold batch normalisation within the context, as for everything that is decided."""
        with exclusive():
            training, folded = [m for m in self.modules() if m.training], self.folded
            self.eval()
            self.folded = True
            try:
                yield
            finally:
                self.folded = folded
                for module in training:
                    module.training = True

    def fold(self, name: str) -> tuple[Fold, Layer] | None:
        """Return the folded normalisation of the layer that owns a weight, or None where nothing is folded."""
        layer = next((m for m in self.layers if m.weight == name and m.norm), None) if self.folded else None
        result = None if layer is None else fold(self.net, layer)
        return None if result is None or layer is None else (result, layer)

    def location(self, name: str, rung: Rung | None = None) -> Tensor:
        """Return the location of a weight's codes: its own real values, with a folded gain on a given rung."""
        weight: Tensor = self.net.get_parameter(name)
        if (zeros := self.weights[name].zeros) is not None:
            weight = weight.masked_fill(zeros, 0.0)
        return weight if rung is None or rung.factor is None else weight * rung.factor

    def rung(self, name: str, onehot: Tensor) -> Rung:
        """Return the levels and scale of a weight on a drawn rung, normalisation folded in; decided sums have room."""
        return self.folded_rung(name, self.quantizer(name).rung(onehot.detach().argmax(-1)))

    def folded_rung(self, name: str, rung: Rung) -> Rung:
        """Return what becomes of a weight's own rung where normalisation is folded in."""
        if not self.folded:
            return rung
        folded = self.fold(name)
        if folded is not None:
            rung = folded[0].rung(rung, folded[1], self.quantizer(name).multipliers)
        for layer in self.layers:
            if layer.weight == name and (layer.input is None or layer.input in self.input_names):
                x: Any = None if layer.input is None else self.quantizer(layer.input)
                bias = None if layer.input is None else rounded_bias(self.net, layer, self.folded)
                rung = leave_headroom(rung, layer, partial(self.location, name, rung), bias, x)
        return rung

    def run(self, onehots: Mapping[str, Tensor], levels: Mapping[str, Tensor], x: Any, exact: bool = False) -> Any:
        """Return the network's output on given rungs (one-hot) and levels of the weights.

        Args:
            onehots: rung of every quantizer.
            levels: level of every weight, in units of its scale.
            x: a batch of inputs, or a tuple of the network's arguments.
            exact: compute in float64 and round inputs without floating-point error.
        """
        rungs = {name: self.rung(name, onehots[name]) for name in levels}
        weights, noise = self.weight_values(onehots, levels, rungs)
        rungs |= {name: quantizer.rung(onehots[name].detach().argmax(-1)) for name, quantizer in self.inputs.items()}
        first = {*first_operands(self.net), *(layer.input for layer in self.layers if layer.first)}
        inputs = {name: rounder(z, onehots[name], exact, name in first) for name, z in self.inputs.items()}
        return self.call(weights, rungs, inputs, x, noise, exact)

    def weight_values(
        self, onehots: Mapping[str, Tensor], levels: Mapping[str, Tensor], rungs: Mapping[str, Rung]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the values of weights at given levels, and what noisy estimators add to the outputs of layers."""
        values: dict[str, Tensor] = {}
        noise: dict[str, Any] = {}
        for name, level in levels.items():
            rung, onehot = rungs[name], onehots[name].detach() if self.fold(name) else onehots[name]
            if drawn_law(level) is not None:
                level = self._noisy(name, level, rung, onehot, noise)
            values[name] = self.weights[name].weight(level, self.location(name, rung), rung, onehot)
        return values, noise

    def call(
        self,
        weights: Mapping[str, Tensor],
        rungs: Mapping[str, Rung],
        rounders: Mapping[str, Callable[[Tensor], Tensor]],
        x: Any,
        noise: Mapping[str, Any] = NO_NOISE,
        exact: bool = False,
    ) -> Any:
        """Return the network's output with given weights.

        Args:
            weights: the value of every weight, by the name of its quantizer.
            rungs: the rung of every quantizer.
            rounders: what rounds each input, by the name of its quantizer.
            x: as in `run`.
            noise: for the name of a layer, a function to what its output gains, as in `substitute`.
            exact: as in `run`.
        """
        tensors = dict(weights)
        before, after = hooks(self.activations, exact)
        outputs: dict[str, Callable[[Tensor], Tensor]] = {}
        if self.folded:
            outputs |= affine_norms(self.net, self.layers) | self.steps.normalisers(self.net, exact)
            before, after = self.steps.hooks(before, after, exact)
        for layer in self.layers:
            self._bias(layer, rungs, tensors, outputs, exact)
        tensors = {n.removeprefix("."): t for n, t in tensors.items()}  # a network that is one layer has no name
        inputs = {n.removesuffix(".input"): rounder for n, rounder in rounders.items()}
        calls: Any = ({**inputs, **before}, outputs, *arguments(x))
        return substitute(self.net, tensors, *calls, results=after, noise=noise, dtype=torch.float64 if exact else None)

    def _noisy(self, name: str, levels: Tensor, rung: Rung, onehot: Tensor, noise: dict[str, Any]) -> Tensor:
        """Return the mean levels and the noise of a weight whose estimator adds noise to its layer's outputs."""
        quantizer, law = self.weights[name], drawn_law(levels)
        assert law is not None

        def through(value: Tensor, of_rung: OfRung) -> Tensor:
            return quantizer.through_gates(value, self.location(name, rung), onehot, of_rung)

        layer = next(layer for layer in self.layers if layer.weight == name)
        noise[layer.name] = quantizer.estimator.noise(law, levels, through)
        return law.mean

    def _bias(self, layer: Layer, rungs: Any, tensors: Any, outputs: Any, exact: bool) -> None:
        """Round a layer's bias, normalisation folded in, to the grid of its accumulator."""
        if layer.input is None:
            return
        known = layer.weight in self.weight_names and layer.input in self.input_names
        step = accumulator_step(self.net, layer, rungs[layer.weight], rungs[layer.input]) if known else None
        bias = rounded_bias(self.net, layer, self.folded, step)
        place = getattr(self.net.get_submodule(layer.name), "bias", None)
        if place is not None and bias is not None:
            tensors[f"{layer.name}.bias"] = bias if exact else bias.to(place.dtype)
        if layer.norm is not None and self.folded:
            outputs[layer.norm] = shift_bias(bias if place is None else None)
