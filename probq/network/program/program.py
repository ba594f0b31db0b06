"""The probabilistic program is the model and the guide over a network's widths and codes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pyro
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from probq.likelihoods import categorical, for_target, for_targets, is_usual, only_tensor
from probq.network.distributions.observation import Observation, as_targets
from probq.network.distributions.unbatched_law import ONE_DRAW
from probq.network.distributions.uniform_codes import UniformCodes
from probq.network.program.network import Network
from probq.network.program.substitution import running
from probq.network.program.width_prior import pair_energy
from probq.network.quantizers.base import Quantizer, Rung
from probq.network.quantizers.weight import WeightQuantizer
from probq.utils.errors import ProbqError, sentence
from probq.utils.structures.targets import Targets
from probq.utils.structures.tensors import tensors_in

PAIRS = "width.pairs"  # the site of the prior's pairs of widths


class ProgramModule(nn.Module):
    """This module is the model or the guide with the network's parameters, as `ELBO()(model, guide)` wants it."""

    def __init__(self, program: Program, function: Callable[..., Any]) -> None:
        super().__init__()
        self.program, self.function = program, function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns."""
        return self.function(*args, **kwargs)


def check_posterior(q: Any, function: str) -> None:
    """Raise unless `q` has a posterior.

    Args:
        q: what was given.
        function: the function of probq, to which it was given.
    """
    if not isinstance(q, Program):
        raise ProbqError(
            f"{function} takes a network with a posterior, q = probq.quantize(network, example), not {type(q).__name__}"
        )


class Program(Network):
    """A program is a network with a posterior over the width of every quantizer and the code of every weight.

    See `Network` for its attributes.
    """

    @property
    def model(self) -> ProgramModule:
        """Return the model `model(x, y=None, size=None)`.

        It is the prior over widths and codes, then the likelihood of the targets.

        Sample sites: `NAME.width` (one-hot over the rungs) for every quantizer with more than one rung (of those that
        are tied, the first one), `NAME.code`
        (a level for each weight) for every weight, and `obs`, one for each output where several have likelihoods, such
        as `obs.boxes`. Where the prior of widths has pairs, the factor
        `width.pairs` is their part of the log-probability, up to a constant.

        Args:
            x: a batch of inputs, or a tuple of the network's arguments.
            y: targets, or None to draw them.
            size: number of examples in the whole data set, by default that of the batch; the likelihood is scaled up.

        Returns:
            The network's output.
        """
        return ProgramModule(self, self._model)

    @property
    def guide(self) -> ProgramModule:
        """Return the guide, the variational posterior over widths, and over codes given widths.

        It takes the arguments of `model`.
        """
        return ProgramModule(self, self._guide)

    def _model(self, x: Any, y: Tensor | None = None, size: int | None = None) -> Any:
        onehots: dict[str, Tensor] = {}
        levels: dict[str, Tensor] = {}
        with poutine.scale(scale=self.temperature):
            for name, quantizer in self.named_quantizers():
                onehots[name] = self._width_site(name, quantizer, quantizer.prior, onehots)
                if isinstance(quantizer, WeightQuantizer):
                    levels[name] = self._prior_code(name, quantizer, onehots[name])
            if self.pairs is not None:
                pyro.factor(PAIRS, -pair_energy(self, onehots))
        with running(x):
            output = self.run(onehots, levels, x)
        y = as_targets(y)
        law = Observation(self.law(output, y))
        rows = law.batch_shape[0] if law.batch_shape else 1
        with pyro.plate("data", rows), poutine.scale(scale=(size or rows) / rows):
            for name, own, value in law.sites(y):
                pyro.sample(name, own, obs=value)
        return output

    def _guide(self, x: Any = None, y: Tensor | None = None, size: int | None = None) -> None:
        self._param_sites()
        with poutine.scale(scale=self.temperature):
            onehots: dict[str, Tensor] = {}
            for name, quantizer in self.named_quantizers():
                onehot = onehots[name] = self._width_site(name, quantizer, quantizer.widths, onehots)
                if isinstance(quantizer, WeightQuantizer) and self.draws_codes(quantizer):
                    law = self._code_law(name, quantizer, self.rung(name, onehot))
                    # The estimator only changes the gradient of draws, so it is set on the law rather than making a law
                    # of its own: entropy and log-probability, and with them the KL, are the same for all estimators.
                    law.estimate = quantizer.code_estimator(self.temperature).draw if self.training else None
                    _sample_site(f"{name}.code", law)

    def _width_site(self, name: str, quantizer: Quantizer, law: Callable[[], Any], drawn: Any) -> Tensor:
        if name in self.sites:
            return drawn[self.sites[name]]
        if not quantizer.free:
            return quantizer.probs()
        distribution = law()
        return _sample_site(f"{name}.width", distribution.to_event(len(distribution.batch_shape)))

    def draws_codes(self, quantizer: WeightQuantizer) -> bool:
        """Return whether the codes of a weight are drawn, and not rounded."""
        return quantizer.nearest > 1 and not self.rounding

    def _prior_code(self, name: str, quantizer: WeightQuantizer, onehot: Tensor) -> Tensor:
        rung = self.rung(name, onehot)
        if not self.draws_codes(quantizer):
            return self._code_law(name, quantizer, rung, nearest=1).rsample()
        return _sample_site(f"{name}.code", self.code_prior(name, rung, onehot))

    def code_prior(self, name: str, rung: Rung, onehot: Tensor) -> UniformCodes:
        """Return the prior of a weight's codes on a drawn rung, normalisation folded in as in the weight itself."""
        return self.weights[name].code_prior(rung, onehot, self.location(name, rung))

    def _code_law(self, name: str, quantizer: WeightQuantizer, rung: Rung, nearest: int | None = None) -> Any:
        return quantizer.law(self.location(name, rung), rung, nearest)

    def _param_sites(self) -> None:
        """Announce the parameters to Pyro's handlers, so that `SVI` moves them, without the global parameter store."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and poutine.runtime.am_i_wrapped():
                # `SVI` reads the parameter to train from `value.unconstrained()`. A stand-in carries this weak
                # reference, because a parameter that did could not be pickled.
                value = parameter.detach()
                value.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]
                # `pyro.param` would keep the parameter in a store of the whole process, where two networks share what
                # has the same name; `effectful` sends the same message to the handlers and stores nothing.
                statement = poutine.runtime.effectful(type="param")(lambda *_, value=value, **__: value)
                statement(name, constraint=constraints.real, event_dim=parameter.dim(), name=name)

    def expected_pair_energy(self) -> Tensor:
        """Return the expected energy of pairs of widths in nats, exactly, a float64 scalar with gradients."""
        return pair_energy(self, {name: quantizer.probs() for name, quantizer in self.named_sites()})

    def law(self, output: Any, y: Any = None) -> Distribution:
        """Return the law of the targets given the network's output.

        Where no likelihood was given, targets decide which it is, as in `fit`; the output is then a tensor, or holds
        one alone, or targets are `Targets` of classes.

        Raises:
            ProbqError: if there is no law for such an output.
        """
        likelihood = self.likelihood
        if (
            likelihood is None
            and isinstance(y, Targets)
            and not any(one.is_floating_point() for one in tensors_in(y.of))
        ):
            likelihood = for_targets(y.of, output)
        if likelihood is None:
            if y is not None and y.is_floating_point():
                raise ProbqError(
                    "the targets are real numbers: give quantize or fit a likelihood, e.g. probq.likelihoods.Normal()"
                )
            output = only_tensor(output)
            if y is None and output.shape[-1] == 1:
                raise ProbqError(
                    "one output is no law of classes, and there are no targets to tell another: give quantize a "
                    "likelihood, e.g. probq.likelihoods.Normal()"
                )
            likelihood = categorical if y is None else for_target(y, output)
        try:
            law = likelihood(only_tensor(output) if is_usual(likelihood) else output)
        except ProbqError:
            raise
        except (TypeError, ValueError) as error:
            raise ProbqError(f"the likelihood does not take the network's output: {sentence(error)}") from error
        if not isinstance(law, Distribution):
            raise ProbqError(f"a likelihood must return a torch distribution, not {type(law).__name__}")
        return law


def _sample_site(site: str, law: Any) -> Tensor:
    """Return what Pyro draws at a site, in the law's own shape.

    Earlier draws that are given back may have axes of size 1.

    Raises:
        ProbqError: if it draws a batch.
    """
    value: Tensor = pyro.sample(site, law)
    if value.numel() != law.shape().numel():
        raise ProbqError(f"{site} was drawn {list(value.shape)} for {list(law.shape())}: {ONE_DRAW}")
    # the very tensor where it fits: a noisy estimator's draw carries its law, which a reshaped one would lose
    return value if value.shape == law.shape() else value.reshape(law.shape())
