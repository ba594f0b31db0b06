"""A fit, a file and an ensemble ask a likelihood, by methods, for more than its law.

A function of the user's own gives laws alone, which is what the base class says; a likelihood here overrides what it
knows more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias

from torch import Tensor, nn
from torch.distributions import Distribution

from probq.utils.errors import ProbqError

Likelihood: TypeAlias = Callable[[Tensor], Distribution]


class NetworkLikelihood:
    """A network's likelihood takes one tensor of outputs, or all outputs where `takes_one` is false.

    Attributes:
        needs_residuals: whether `start` takes the residuals of the float network.
        takes_one: whether it takes one tensor, and not all outputs together.
        scale_parameters: names of those of its parameters that are learned at the rate of scales.
    """

    needs_residuals: ClassVar[bool] = False
    takes_one: ClassVar[bool] = True
    scale_parameters: ClassVar[tuple[str, ...]] = ("log_sd",)  # users' own modules name it so too

    @property
    def members(self) -> tuple[NetworkLikelihood, ...]:
        """Return the likelihoods of the outputs, itself where there is one."""
        return (self,)

    def start(self, residuals: Tensor) -> None:
        """Set what is learned from targets minus outputs of the float network, `[numbers]`."""

    @property
    def noise_variance(self) -> float | None:
        """Return the variance of the targets around the output.

        The result is None where targets are no real numbers, or it is not known.
        """
        return None

    def metadata(self) -> dict[str, Any]:
        """Return what a model file needs for reading its outputs."""
        return {}

    def identity(self) -> Any:
        """Return what two fits must have in common for their draws to be compared.

        Parameters that are learned are not part of it.
        """
        return type(self)

    def to_entry(self) -> dict[str, Any]:
        """Return what JSON can hold of it; tensors of its state are kept beside."""
        raise NotImplementedError


class FunctionLikelihood(NetworkLikelihood):
    """This is a likelihood of the user's own, or none.

    Args:
        of: the function or module.
    """

    takes_one: ClassVar[bool] = False

    def __init__(self, of: Likelihood | None) -> None:
        self.of = of

    def identity(self) -> Any:
        """Return a function itself; of a module with parameters of its own, what it is."""
        return type(self.of) if isinstance(self.of, nn.Module) else self.of


def as_network_likelihood(likelihood: Likelihood | None) -> NetworkLikelihood:
    """Return a likelihood with its methods."""
    return likelihood if isinstance(likelihood, NetworkLikelihood) else FunctionLikelihood(likelihood)


def check_likelihood(likelihood: Any) -> None:
    """Raise unless a likelihood is a function, or None."""
    if likelihood is not None and not callable(likelihood):
        raise ProbqError(
            "likelihood is a function from outputs to a law, such as probq.likelihoods.categorical, not "
            f"{likelihood!r:.80}"
        )


def only_tensor(output: Any) -> Tensor:
    """Return a network's output, or the one thing in it, as the likelihoods here take it.

    Raises:
        ProbqError: if it is not one tensor.
    """
    held = list(output.values()) if isinstance(output, Mapping) else output
    if isinstance(held, list | tuple) and len(held) == 1:
        return only_tensor(held[0])
    if isinstance(output, Tensor):
        return output
    keys = f" with {', '.join(map(repr, output))}" if isinstance(output, Mapping) else ""
    chosen = repr(next(iter(output))) if isinstance(output, Mapping) and output else "0"
    raise ProbqError(
        f"the network returns a {type(output).__name__}{keys}; give quantize or fit a likelihood, a function from it "
        f"to a torch distribution, such as lambda output: probq.likelihoods.categorical(output[{chosen}])"
    )
