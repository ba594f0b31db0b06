"""`quantize`, and `Quantized`: a network with a posterior over its widths and codes."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probq import decide
from probq.assignment import Assignment
from probq.budget import Budget
from probq.errors import ProbqError
from probq.fold import fold, foldable, per_channel
from probq.layers import Layer, Trace, arguments, trace
from probq.likelihoods import Likelihood
from probq.plan import Plan, Planner, plan_for
from probq.program import Program
from probq.quantizer import InputQuantizer
from probq.rounding import code_levels
from probq.substitute import substitute
from probq.weight_quantizer import WeightQuantizer


class Quantized(Program):
    """A network with a posterior over the width of every quantizer and the code of every weight.

    Made by `quantize`, trained by `fit`. Calling it runs the network at its mode; see `Program` for its attributes,
    and for `model` and `guide`.
    """

    def mode(self, budget: Budget | None = None) -> Assignment:
        """The most probable widths whose cost keeps the budget, and the most probable codes.

        Args:
            budget: the limit; by default the one last fitted for, if any.

        Raises:
            ProbqError: if the budget is below the cheapest reachable cost.
        """
        return decide.mode(self, budget or self.budget)

    def sample(self, n: int, budget: Budget | None = None, seed: int | None = None) -> list[Assignment]:
        """Draws from the posterior given that the cost keeps the budget; each one does.

        Args:
            n: number of draws.
            budget: the limit; by default the one last fitted for, if any.
            seed: makes the draws reproducible; by default torch's random state decides.

        Raises:
            ProbqError: if the budget is below the cheapest reachable cost.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ProbqError(f"sample takes a number of draws, 1 or more, not {n!r}")
        return decide.sample(self, n, budget or self.budget, seed)

    def at(self, assignment: Assignment) -> Quantized:
        """A copy of the network with its widths fixed, batch normalisation folded, and its codes those decided.

        Args:
            assignment: from `mode` or `sample` of this network.

        Raises:
            ProbqError: if the assignment belongs to another network or plan.
        """
        fixed = copy.deepcopy(self)
        fixed.folded = True
        decide.fix(fixed, assignment.widths)
        fixed._place(assignment)
        return fixed

    @torch.no_grad()
    def _place(self, assignment: Assignment) -> None:
        """Move the location of every weight whose nearest level is not its decided one onto that level."""
        current = decide.codes(self, assignment.widths)
        chosen = decide.onehots(self, assignment.widths)
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
                folded = self.fold(name)
                gain = per_channel(folded[0].gain, folded[1]).expand_as(wanted) if folded else torch.ones_like(value)
                gain = torch.where(gain == 0, torch.ones_like(gain), gain)  # a dead channel: any weight will do
                self.net.get_parameter(name)[differ] = (value / gain)[differ]

    def forward(self, *args: Any) -> Any:
        """The network's output at its mode: exactly what the integer model computes, in the inputs' precision."""
        if self.training and decide.decided(self):
            return self._at_fixed(arguments(args), exact=False)
        assignment = self.mode()
        return self._decided(assignment, args)

    def _at_fixed(self, args: tuple[Any, ...], exact: bool) -> Any:
        onehots = {name: quantizer.probs() for name, quantizer in self.named_quantizers()}
        levels = {
            n: self._code_law(n, w, self.rung(n, onehots[n]), nearest=1).rsample() for n, w in self.weights.items()
        }
        return self.run(onehots, levels, args, exact)

    @torch.no_grad()
    def _decided(self, assignment: Assignment, args: tuple[Any, ...]) -> Any:
        """Output at an assignment: evaluation mode, normalisation folded, float64 inside."""
        onehots = decide.onehots(self, assignment.widths)
        with self.evaluating():
            levels = {
                name: code_levels(
                    self.rung(name, onehots[name]).levels,
                    torch.as_tensor(assignment.codes[name], device=self.device).long(),
                )
                for name in self.weight_names
            }
            try:
                return _like(self.run(onehots, levels, args, exact=True), args)
            except RuntimeError:
                # a network with float32 constants of its own cannot run in float64; its own precision must do
                return self.run(onehots, levels, args)

    def predict(self, x: Any, draws: int = 16, seed: int | None = None, budget: Budget | None = None) -> Tensor:
        """Outputs of networks drawn from the posterior, `[draws, batch, ...]`, one network a row.

        Args:
            x: a batch of inputs, or a tuple of the network's arguments.
            draws: number of networks.
            seed: makes the draws reproducible.
            budget: the limit that every drawn network keeps; by default the one last fitted for, if any.
        """
        outputs = [self._decided(a, arguments(x)) for a in self.sample(draws, budget, seed)]
        if not isinstance(outputs[0], Tensor):
            raise ProbqError(
                f"predict needs a network that returns one tensor, not a {type(outputs[0]).__name__}; "
                "for others, call q.at(a) for each a of q.sample(...)"
            )
        return torch.stack(outputs)

    def save(self, path: Any) -> None:
        """Write the posterior as safetensors with a JSON header; see `probq.load`."""
        from probq.posterior import save

        save(self, path)

    def __repr__(self) -> str:
        lines = [f"Quantized({type(self.net).__name__}: {len(self.layers)} layers, {len(self.quantizers)} quantizers"]
        lines += [f"  {name}: {q.ladder.bits} bits" for name, q in self.named_quantizers()]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)]) + ")"


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
        UserWarning: for every operation that stays float although no plan said so; `notes` lists them.

    Raises:
        ProbqError: if nothing can be quantized, the example does not fit or misses a layer, a weight is not finite,
            or the plan is not one.
    """
    if not isinstance(net, nn.Module):
        raise ProbqError(f"quantize takes a torch.nn.Module, not {type(net).__name__}")
    copied = copy.deepcopy(net)
    found = trace(copied, example)
    layers = _checked_norms(copied, found, example)
    weights: dict[str, WeightQuantizer] = {}
    inputs: dict[str, InputQuantizer] = {}
    notes = list(found.notes)
    for place, layer in enumerate(layers):
        own = plan_for(Plan() if plan is None else plan, layer)
        if own is None:
            layers[place] = replace(layer, norm=None)  # nothing is folded into what stays float
            notes.append(f"{layer.name} stays float, as planned; it counts as 32 x 32 bits")
            continue
        own.check(layers[place], layers)
        if layer.weight not in weights:
            weights[layer.weight] = WeightQuantizer(_as_shipped(copied, layers[place]), own, layer.channel_axis)
        if layer.input is not None:
            sample = found.inputs[layer.name]
            inputs[layer.input] = InputQuantizer(own.input_ladder(layer), sample, own.input_prior, own.estimator)
            # a scale to train would ask for the gradient of the first layer's input, for a power of two that stays
            inputs[layer.input].log2_scale.requires_grad_(not layer.first or len(inputs[layer.input].ladder) > 1)
    if not weights:
        raise ProbqError("the plan leaves every layer in float; let it return a Plan for at least one layer")
    for note in found.notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    quantized = Quantized(copied, tuple(layers), weights, inputs, tuple(notes), likelihood)
    quantized.signature = signature(example)
    return quantized.train(net.training)


def _as_shipped(net: nn.Module, layer: Layer) -> Tensor:
    """A layer's weight, in units of which the scales are set: with what folding a normalisation adds to a power of two.

    Scales set on the plain weight would clip the folded one, whose scale follows the gain in powers of two only.
    """
    folded = fold(net, layer)
    weight = net.get_parameter(layer.weight).detach()
    return weight if folded is None else weight * per_channel(folded.gain.detach() / folded.power_of_two, layer)


def signature(example: Any) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """Shape without the batch, and type, of every tensor among the network's arguments."""
    return tuple((tuple(a.shape[1:]), a.dtype) for a in arguments(example) if isinstance(a, Tensor))


def _checked_norms(net: nn.Module, found: Trace, example: Any) -> list[Layer]:
    """The layers, with only those normalisations that can be folded without changing the network's output."""
    layers = [m if foldable(net, m) else replace(m, norm=None) for m in found.layers]
    if _folds(net, layers, example):
        return layers
    return [m if m.norm is None or _folds(net, [m], example) else replace(m, norm=None) for m in layers]


@torch.no_grad()
def _folds(net: nn.Module, layers: list[Layer], example: Any) -> bool:
    """Whether folding leaves the output as it is, for other statistics than the present ones too (they will change)."""
    training = [m for m in net.modules() if m.training]
    net.eval()
    norms: dict[str, Any] = {m.norm: net.get_submodule(m.norm) for m in layers if m.norm is not None}
    kept = {name: (norm.running_mean.clone(), norm.running_var.clone()) for name, norm in norms.items()}
    try:
        for norm in norms.values():
            tilt = torch.linspace(0.5, 1.5, norm.num_features).to(norm.running_var)
            norm.running_mean.add_(tilt * (norm.running_var + norm.eps).sqrt())
            norm.running_var.mul_(tilt)
        reference = net(*arguments(example))
        result = substitute(net, *_folded(net, layers), *arguments(example))
    finally:
        for name, (mean, variance) in kept.items():
            norms[name].running_mean.copy_(mean)
            norms[name].running_var.copy_(variance)
        for module in training:
            module.training = True
    pairs = zip(tensors_of(reference), tensors_of(result), strict=True)
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max().clamp_min(1e-6))) for a, b in pairs)


def _folded(net: nn.Module, layers: list[Layer]) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """What `substitute` takes to fold the normalisations of some layers."""
    tensors: dict[str, Tensor] = {}
    outputs: dict[str, Any] = {}
    for layer in layers:
        folded = fold(net, layer)
        if folded is not None and layer.norm is not None:
            tensors[layer.weight] = net.get_parameter(layer.weight) * per_channel(folded.gain, layer)
            bias = getattr(net.get_submodule(layer.name), "bias", None)
            if bias is not None:
                tensors[f"{layer.name}.bias"] = torch.zeros_like(bias)
            shift = folded.shift if bias is None else folded.shift + bias * folded.gain
            outputs[layer.norm] = lambda x, shift=shift: x + shift.reshape([1, -1] + [1] * (x.dim() - 2))
    return tensors, {}, outputs


def tensors_of(output: Any) -> list[Tensor]:
    """All floating-point tensors in a network's output."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    members = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else []
    return [tensor for member in members for tensor in tensors_of(member)]


def _like(output: Any, args: tuple[Any, ...]) -> Any:
    """The output in the precision of the inputs."""
    floats = [a.dtype for a in args if isinstance(a, Tensor) and a.is_floating_point()]
    dtype = floats[0] if floats else torch.get_default_dtype()
    if isinstance(output, Tensor):
        return output.to(dtype) if output.is_floating_point() else output
    if isinstance(output, dict):
        return type(output)({k: _like(v, args) for k, v in output.items()})
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(_like(v, args) for v in output))
    return type(output)(_like(v, args) for v in output) if isinstance(output, tuple | list) else output
