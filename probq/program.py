"""The probabilistic program: a network called with drawn weights and rounded inputs, its model and its guide."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from probq.errors import ProbqError
from probq.fold import Fold, fold, per_channel
from probq import cost as costs
from probq.layers import NORMS, Layer, arguments, hook_input
from probq.likelihoods import Likelihood, categorical
from probq.quantizer import InputQuantizer, Quantizer, Rung, WeightQuantizer
from probq.rounding import Grids


def substitute(
    net: nn.Module,
    tensors: Mapping[str, Tensor],
    inputs: Mapping[str, Callable[[Tensor], Tensor]],
    outputs: Mapping[str, Callable[[Tensor], Tensor]],
    *args: Any,
) -> Any:
    """Call a network with other weights and with functions applied to its layers' inputs.

    Args:
        net: the network; parameters, buffers and hooks are as before afterwards.
        tensors: replacements of parameters and buffers by name; tied ones are replaced together.
        inputs: for each module name, a function of its input.
        outputs: for each module name, a function of its input that replaces its output.
        args: the network's arguments.
    """
    handles = []
    for name, function in inputs.items():
        hook = _input_hook(function)
        handles.append(net.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))
    for name, function in outputs.items():
        handles.append(net.get_submodule(name).register_forward_hook(_output_hook(function), with_kwargs=True))
    try:
        return torch.func.functional_call(net, dict(tensors), args)
    finally:
        for handle in handles:
            handle.remove()


def _input_hook(function: Callable[[Tensor], Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (function(args[0]), *args[1:]), kwargs
        key = "input" if "input" in kwargs else next(iter(kwargs))
        return args, {**kwargs, key: function(kwargs[key])}

    return hook


def _output_hook(function: Callable[[Tensor], Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return function(hook_input(args, kwargs))

    return hook


class Observation(TorchDistribution):
    """A likelihood's law with one batch axis, the examples; everything else is the event."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.independent(constraints.real, 0)

    def __init__(self, law: Distribution) -> None:
        self.law, self._target = law, law.batch_shape + law.event_shape
        super().__init__(law.batch_shape[:1], self._target[1:], validate_args=False)

    def shaped(self, value: Tensor) -> Tensor:
        """Targets in the law's own shape, which may have or lack axes of length 1.

        Raises:
            ProbqError: if they are more or fewer than the law has.
        """
        if value.shape == self._target:
            return value
        if value.numel() != self._target.numel():
            raise ProbqError(
                f"targets of shape {tuple(value.shape)} do not fit outputs whose law has shape "
                f"{tuple(self._target)}; change the targets' shape or give another likelihood"
            )
        return value.reshape(self._target)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each example's target, `[batch]`."""
        log_prob = self.law.log_prob(self.shaped(value))
        return log_prob.reshape(log_prob.shape[0], -1).sum(-1)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Drawn targets."""
        return self.law.sample(sample_shape)


class Part(nn.Module):
    """The model or the guide as a module that holds the network's parameters, as `ELBO()(model, guide)` wants it."""

    def __init__(self, program: Program, function: Callable[..., Any]) -> None:
        super().__init__()
        self.program, self.function = program, function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        return self.function(*args, **kwargs)


class Program(nn.Module):
    """A network with a posterior over the width of every quantizer and the code of every weight.

    The guide's parameters are the posterior: gate logits, scales and spreads of the
    quantizers, and the network's own weights as locations of the codes.

    Attributes:
        net: a copy of the user's network.
        layers: its layers.
        weights, inputs: quantizers by name (`conv1.weight`, `conv1.input`).
        notes: sentences on everything that stays float.
        likelihood: law of the target given the output; None until `fit` sees the targets.
        temperature: factor of all KL terms (1 is the Bayesian posterior, below 1 a "cold" one).
        budget: the last budget fitted for; what `mode` and `sample` keep unless told otherwise.
        folded: whether batch normalisation is folded into the layers, as in everything that is decided.
        rounding: whether codes are rounded deterministically instead of drawn.
        calibrated: whether the inputs' scales were set from data.
        signature: shape without the batch, and type, of the network's arguments.
    """

    def __init__(
        self,
        net: nn.Module,
        layers: tuple[Layer, ...],
        weights: Mapping[str, WeightQuantizer],
        inputs: Mapping[str, InputQuantizer],
        notes: tuple[str, ...] = (),
        likelihood: Likelihood | None = None,
    ) -> None:
        super().__init__()
        self.net, self.layers, self.notes = net, layers, notes
        self.quantizers = nn.ModuleDict({name.replace(".", "/"): q for name, q in {**weights, **inputs}.items()})
        self.weight_names, self.input_names = tuple(weights), tuple(inputs)
        self.likelihood = likelihood
        self.temperature = 1.0
        self.budget: Any = None
        self.folded, self.rounding = False, False
        self.calibrated = False
        self.signature: tuple[tuple[tuple[int, ...], torch.dtype], ...] = ()

    @property
    def weights(self) -> dict[str, WeightQuantizer]:
        """Weight quantizers by name."""
        return {name: self.quantizer(name) for name in self.weight_names}  # type: ignore[misc]

    @property
    def inputs(self) -> dict[str, InputQuantizer]:
        """Input quantizers by name."""
        return {name: self.quantizer(name) for name in self.input_names}  # type: ignore[misc]

    def quantizer(self, name: str) -> Quantizer:
        """The quantizer of one name, for example `conv1.weight`."""
        return self.quantizers[name.replace(".", "/")]  # type: ignore[return-value]

    def named_quantizers(self) -> Iterator[tuple[str, Quantizer]]:
        """All quantizers, weights first."""
        for name in (*self.weight_names, *self.input_names):
            yield name, self.quantizer(name)

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> Any:
        """Training mode, with folded batch normalisation frozen: what ships is what is trained."""
        super().train(mode)
        if self.folded:
            for module in self.net.modules():
                if isinstance(module, NORMS):
                    module.eval()
        return self

    def cost_tables(self, cost: costs.Cost = costs.bops) -> list[tuple[Layer, Tensor]]:
        """Cost of every pair of widths of every layer, for `expected_cost`."""
        tables = []
        for layer in self.layers:
            sides = [self.quantizer(n).ladder.bits if n in self else (costs.FLOAT_BITS,) for n in (layer.weight, layer.input)]
            tables.append((layer, torch.as_tensor(costs.pairs(layer, *sides, cost), device=self.device)))
        return tables

    def expected_cost(self, tables: list[tuple[Layer, Tensor]]) -> Tensor:
        """Exact `E[cost]` under the posterior over widths, a float64 scalar with gradients."""
        certain = torch.ones(1, device=self.device)
        probs = {name: quantizer.probs() for name, quantizer in self.named_quantizers()}
        parts = [
            costs.expected(table, probs.get(layer.weight, certain), probs.get(layer.input or "", certain))
            for layer, table in tables
        ]
        return torch.stack(parts).sum()

    def __contains__(self, name: Any) -> bool:
        return name in self.weight_names or name in self.input_names

    # The program

    @property
    def model(self) -> Part:
        """The model `model(x, y=None, size=None)`: prior over widths and codes, then the likelihood of the targets.

        Sample sites: `NAME.width` (one-hot over the rungs) for every quantizer with more than one rung, `NAME.code`
        (a level for each weight) for every weight, and `obs`.

        Args:
            x: a batch of inputs, or a tuple of the network's arguments.
            y: targets, or None to draw them.
            size: number of examples in the whole data set, by default that of the batch; the likelihood is scaled up.

        Returns:
            The network's output.
        """
        return Part(self, self._model)

    @property
    def guide(self) -> Part:
        """The guide: the variational posterior over widths, and over codes given widths. Arguments as `model`."""
        return Part(self, self._guide)

    def _model(self, x: Any, y: Tensor | None = None, size: int | None = None) -> Any:
        onehots: dict[str, Tensor] = {}
        levels: dict[str, Tensor] = {}
        with poutine.scale(scale=self.temperature):
            for name, quantizer in self.named_quantizers():
                onehots[name] = self._width_site(name, quantizer, quantizer.prior)
                if isinstance(quantizer, WeightQuantizer):
                    levels[name] = self._prior_code(name, quantizer, onehots[name])
        output = self.run(onehots, levels, x)
        law = Observation(self.law(output, y))
        rows = law.batch_shape[0] if law.batch_shape else 1
        with pyro.plate("data", rows), poutine.scale(scale=(size or rows) / rows):
            pyro.sample("obs", law, obs=None if y is None else law.shaped(y))
        return output

    def _guide(self, x: Any = None, y: Tensor | None = None, size: int | None = None) -> None:
        self._param_sites()
        with poutine.scale(scale=self.temperature):
            for name, quantizer in self.named_quantizers():
                onehot = self._width_site(name, quantizer, quantizer.widths)
                if isinstance(quantizer, WeightQuantizer) and self._draws_codes(quantizer):
                    pyro.sample(f"{name}.code", self._code_law(name, quantizer, self.rung(name, onehot)))

    def _width_site(self, name: str, quantizer: Quantizer, law: Callable[[], Any]) -> Tensor:
        if not quantizer.free:
            return quantizer.probs()
        distribution = law()
        return pyro.sample(f"{name}.width", distribution.to_event(len(distribution.batch_shape)))  # type: ignore[no-any-return]

    def _draws_codes(self, quantizer: WeightQuantizer) -> bool:
        return quantizer.nearest > 1 and not self.rounding

    def _prior_code(self, name: str, quantizer: WeightQuantizer, onehot: Tensor) -> Tensor:
        rung = self.rung(name, onehot)
        if not self._draws_codes(quantizer):
            return self._code_law(name, quantizer, rung, nearest=1).rsample()
        prior = quantizer.code_prior(rung, onehot, self.location(name))
        return pyro.sample(f"{name}.code", prior)  # type: ignore[no-any-return]

    def _code_law(self, name: str, quantizer: WeightQuantizer, rung: Rung, nearest: int | None = None) -> Any:
        return quantizer.law(self.location(name), rung, nearest)

    def _param_sites(self) -> None:
        """Announce the parameters to Pyro's handlers, so that `SVI` moves them, without the global parameter store."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and poutine.runtime.am_i_wrapped():
                parameter.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]
                statement = poutine.runtime.effectful(type="param")(lambda *_, value=parameter, **__: value)
                statement(name, constraint=constraints.real, event_dim=parameter.dim(), name=name)

    def law(self, output: Any, y: Tensor | None = None) -> Distribution:
        """Law of the targets given the network's output."""
        if self.likelihood is None and y is not None and y.is_floating_point():
            raise ProbqError("the targets are real numbers: give quantize or fit a likelihood, e.g. probq.likelihoods.Normal()")
        if self.likelihood is None and not isinstance(output, Tensor):
            raise ProbqError(
                f"the network returns a {type(output).__name__}; give quantize or fit a likelihood, a function from it to "
                "a torch distribution"
            )
        law = (self.likelihood or categorical)(output)
        if not isinstance(law, Distribution):
            raise ProbqError(f"a likelihood must return a torch distribution, not {type(law).__name__}")
        return law

    # The network's call

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within: evaluation mode and batch normalisation folded, as in everything that is decided."""
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
        """The folded normalisation of the layer that owns a weight, if there is one and this network is folded."""
        layer = next((m for m in self.layers if m.weight == name and m.norm), None)
        result = fold(self.net, layer) if layer is not None and self.folded else None
        return None if result is None or layer is None else (result, layer)

    def location(self, name: str) -> Tensor:
        """Real-valued location of a weight's codes: the network's own weight, normalisation folded in."""
        weight = self.net.get_parameter(name)
        folded = self.fold(name)
        return weight if folded is None else weight * per_channel(folded[0].gain, folded[1])

    def rung(self, name: str, onehot: Tensor) -> Rung:
        quantizer = self.quantizer(name)
        rung = quantizer.rung(onehot.detach().argmax(-1))
        folded = self.fold(name)
        if folded is None:
            return rung
        return Rung(rung.levels, rung.scale * per_channel(folded[0].power_of_two, folded[1]))

    def run(self, onehots: Mapping[str, Tensor], levels: Mapping[str, Tensor], x: Any, exact: bool = False) -> Any:
        """The network's output on given rungs (one-hot) and levels of the weights.

        Args:
            onehots: rung of every quantizer.
            levels: level of every weight, in units of its scale.
            x: a batch of inputs, or a tuple of the network's arguments.
            exact: compute in float64 and round inputs without floating-point error.
        """
        tensors: dict[str, Tensor] = {}
        rungs = {name: self.rung(name, onehots[name]) for name in levels}
        for name, value in levels.items():
            onehot = onehots[name].detach() if self.fold(name) else onehots[name]
            tensors[name] = self.quantizer(name).weight(value, self.location(name), rungs[name], onehot)  # type: ignore[operator]
        inputs = {n.removesuffix(".input"): _rounder(q, onehots[n], exact) for n, q in self.inputs.items()}
        outputs: dict[str, Callable[[Tensor], Tensor]] = {}
        for layer in self.layers:
            self._bias(layer, onehots, rungs, tensors, outputs)
        args = arguments(x)
        if exact:
            everything = {n: t.detach() for n, t in (*self.net.named_parameters(), *self.net.named_buffers())}
            tensors = {n: _double(t) for n, t in {**everything, **tensors}.items()}
            args = tuple(_double(a) if isinstance(a, Tensor) else a for a in args)
        return substitute(self.net, tensors, inputs, outputs, *args)

    def _bias(self, layer: Layer, onehots: Any, rungs: Any, tensors: Any, outputs: Any) -> None:
        """Round a layer's bias, normalisation folded in, to the grid of its accumulator."""
        if layer.input is None:
            return
        step = None
        if layer.weight in rungs and layer.input in self.input_names:
            step = self.accumulator_step(layer, rungs[layer.weight], onehots[layer.input])
        bias = self.rounded_bias(layer, step)
        has_place = getattr(self.net.get_submodule(layer.name), "bias", None) is not None
        if has_place and bias is not None:
            tensors[f"{layer.name}.bias"] = bias
        if layer.norm is not None and self.folded:
            outputs[layer.norm] = _shifted(None if has_place else bias)

    def rounded_bias(self, layer: Layer, step: Tensor | None) -> Tensor | None:
        """Bias of a layer, normalisation folded in, rounded to multiples of its accumulator's `step`; None without."""
        bias = getattr(self.net.get_submodule(layer.name), "bias", None)
        folded = fold(self.net, layer) if self.folded else None
        if folded is not None:
            bias = folded.shift if bias is None else bias * folded.gain + folded.shift
        return bias if bias is None or step is None else step * _half_up_through(bias / step)

    def accumulator_step(self, layer: Layer, weight: Rung, input_onehot: Tensor) -> Tensor:
        """Step of a layer's accumulator: weight scale times input scale, `[channels]` or a scalar."""
        x = self.quantizer(layer.input or "").rung(input_onehot.detach().argmax(-1)).scale
        scale = (self.weight_step(layer, weight) * x.detach()).reshape(-1)
        if scale.numel() == 1:
            return scale.reshape(())
        channels = self.net.get_submodule(layer.name)
        return scale.repeat(channels.groups) if layer.transposed else scale

    def weight_step(self, layer: Layer, weight: Rung) -> Tensor:
        """Step that all weights of an output channel are multiples of: their scale, or the finest where each weight
        has its own; of the shape that broadcasts to the weight."""
        scale = weight.scale.detach()
        others = [axis for axis, n in enumerate(scale.shape) if n > 1 and axis != layer.channel_axis]
        if not others:
            return scale
        if isinstance(weight.levels, Grids):
            scale = torch.where(weight.levels.count > 1, scale, torch.inf)
        step = scale.amin(others, keepdim=True)
        return torch.where(step.isfinite(), step, weight.scale.detach().amin(others, keepdim=True))


def _rounder(quantizer: InputQuantizer, onehot: Tensor, exact: bool) -> Callable[[Tensor], Tensor]:
    return lambda x: quantizer(x, onehot, exact)


def _shifted(bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """What stands in for a folded normalisation: nothing, or the bias that its layer has no place for."""
    if bias is None:
        return lambda x: x
    return lambda x: x + bias.to(x.dtype).reshape([1, -1] + [1] * (x.dim() - 2))


def _half_up_through(u: Tensor) -> Tensor:
    return torch.floor(u.detach() + 0.5) + (u - u.detach())


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
