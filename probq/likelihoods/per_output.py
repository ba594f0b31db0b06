"""Each of several outputs has a likelihood of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn
from torch.distributions import Distribution, constraints

from probq.likelihoods.network_likelihood import NetworkLikelihood, as_network_likelihood, only_tensor
from probq.utils.errors import ProbqError, sentence
from probq.utils.structures.walk import Structure, map_leaves, named_leaves, parts, rebuilt


class OutputLaws(Distribution):
    """These are the laws of several outputs, independent given the network.

    Args:
        laws: by name.
        names: the structure of the names, which that of the targets is like.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.real, 0)

    def __init__(self, laws: Mapping[str, Distribution], names: Structure) -> None:
        self.laws, self.names = dict(laws), names
        super().__init__(next(iter(self.laws.values())).batch_shape[:1], validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Any:
        """Return drawn targets, built like the names."""
        drawn = {name: law.sample(sample_shape) for name, law in self.laws.items()}
        return map_leaves(lambda name: drawn.get(name), self.names)


class PerOutput(NetworkLikelihood, nn.Module):
    """This likelihood has one for each output: `log p(y | x)` is the sum of theirs, as the outputs are independent.

    Targets are built like the likelihoods. A dictionary may leave outputs out, and elsewhere None stands for an output
    that has no targets.

    Args:
        of: likelihoods in a tuple, list or dictionary, nested as the network's output is.

    Raises:
        ProbqError: if one of them is no function, or there is none.

    Example:
        >>> import torch
        >>> law = PerOutput({"kind": torch.distributions.Bernoulli, "size": None})({"kind": torch.tensor([0.5])})
        >>> law.laws["obs.kind"].log_prob(torch.ones(1))
        tensor([-0.6931])
    """

    takes_one: ClassVar[bool] = False

    def __init__(self, of: Structure) -> None:
        super().__init__()
        named = named_leaves(of, "obs")
        if not any(one is not None for _, one in named):
            raise ProbqError("PerOutput takes likelihoods in a tuple, list or dictionary, and there is none")
        for name, one in named:
            if one is not None and not callable(one):
                raise ProbqError(
                    f"the likelihood of {_place(name)} is no function from outputs to a law, but {one!r:.80}"
                )
        self.likelihoods = {name: one for name, one in named if one is not None}
        left = iter([name if one is not None else None for name, one in named])
        self.names = _observed(map_leaves(lambda _: next(left), of))
        modules = [one if isinstance(one, nn.Module) else nn.Identity() for one in self.likelihoods.values()]
        self.parts = nn.ModuleList(modules)  # so that what they learn is learned

    @property
    def members(self) -> tuple[NetworkLikelihood, ...]:
        """Return the likelihoods, with what a fit asks of each."""
        return tuple(as_network_likelihood(one) for one in self.now().values())

    def now(self) -> dict[str, Any]:
        """Return the likelihoods by name, modules as a copy of this one has them."""
        pairs = zip(self.likelihoods.items(), self.parts, strict=True)
        return {name: part if isinstance(one, nn.Module) else one for (name, one), part in pairs}

    @property
    def needs_residuals(self) -> bool:  # type: ignore[override]
        """Return whether one of them takes residuals."""
        return any(member.needs_residuals for member in self.members)

    @property
    def scale_parameters(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return the names of what the likelihoods learn at the rate of scales."""
        return tuple(f"parts.{k}.{name}" for k, member in enumerate(self.members) for name in member.scale_parameters)

    def forward(self, output: Any) -> Distribution:
        """Return the laws of the targets given the outputs."""
        given, laws = by_output(self.names, output), {}
        for name, likelihood in self.now().items():
            try:
                one = given[name]
                laws[name] = likelihood(only_tensor(one) if isinstance(likelihood, NetworkLikelihood) else one)
            except ProbqError as error:
                raise ProbqError(f"{_place(name)}: {error}") from error
            except (TypeError, ValueError) as error:
                raise ProbqError(f"the likelihood of {_place(name)} does not take it: {sentence(error)}") from error
            if not isinstance(laws[name], Distribution):
                raise ProbqError(
                    f"the likelihood of {_place(name)} must return a torch distribution, not a "
                    f"{type(laws[name]).__name__}"
                )
        return OutputLaws(laws, self.names)

    def identity(self) -> Any:
        """Return those of the likelihoods, by name."""
        return PerOutput, tuple((name, m.identity()) for name, m in zip(self.likelihoods, self.members, strict=True))

    def to_entry(self) -> dict[str, Any]:
        """Raise: `entries.py` writes the parts."""
        raise NotImplementedError


def _observed(names: Structure) -> Structure:
    """Return the structure without what dictionaries say None of, which is as if it were left out."""
    if isinstance(names, Mapping):
        return {key: _observed(part) for key, part in names.items() if part is not None}
    own = parts(names)
    return names if own is None else rebuilt(names, [_observed(part) for _, part in own])


def by_output(names: Structure, output: Any) -> dict[str, Any]:
    """Return outputs by the names in a structure, which has None for those that are left out.

    Raises:
        ProbqError: if the output is built otherwise.
    """
    found: dict[str, Any] = {}
    _take(names, output, "the network's output", found)
    return found


def _take(names: Structure, output: Any, place: str, found: dict[str, Any]) -> None:
    """Note the outputs that have a likelihood by its name.

    Raises:
        ProbqError: if the output is built otherwise.
    """
    if isinstance(names, Mapping):
        if not isinstance(output, Mapping):
            raise ProbqError(
                f"{place} is a {type(output).__name__}, and its likelihoods a dictionary; build them alike"
            )
        for key, part in names.items():
            if key not in output:
                known = ", ".join(repr(one) for one in list(output)[:8])
                raise ProbqError(f"{place} has no {key!r}, for which there is a likelihood; it has {known}")
            _take(part, output[key], f"{place}, at {key}", found)
    elif isinstance(names, tuple | list):
        if not isinstance(output, tuple | list) or len(output) != len(names):
            has = f" of {len(output)}" if isinstance(output, tuple | list) else ""
            raise ProbqError(
                f"{place} is a {type(output).__name__}{has}, and its likelihoods a tuple of {len(names)}; build them "
                "alike, with None where there are no targets"
            )
        for k, (part, one) in enumerate(zip(names, output, strict=True)):
            _take(part, one, f"{place}, at {k}", found)
    elif names is not None:
        found[names] = output


def _place(name: str) -> str:
    return f"output {name.removeprefix('obs.')}"
