"""A network has a rounding step for each operation with a constant, softmax and normalisation, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from torch import Tensor, nn

from probq.network.quantizers.normalising import NormalisingStep
from probq.network.quantizers.rounding_step import OperandStep, Step
from probq.network.tracing.call_finder import Found
from probq.network.tracing.product_calls import Quotient
from probq.network.tracing.stand_ins import StandIn

Functions: TypeAlias = dict[str, Callable[[Tensor], Tensor]]


class Steps(nn.ModuleDict):
    """The steps of a network are those of its operations that are no layers, by the names of their stand-ins."""

    def take(self, made: Mapping[str, StandIn], found: Mapping[str, Found] | None = None) -> None:
        """Make a step for each operation with a constant, and for each softmax and normalisation.

        Args:
            made: the network's stand-ins by name.
            found: the magnitudes of an example; None leaves the steps to be loaded.
        """
        for name, one in made.items():
            if one.stepped:
                self[name.replace(".", "/")] = _step(one, found[name] if found else None)
            if isinstance(one, Quotient):
                sizes = (found[name].entering, found[name].divisor) if found else (0.0, 0.0)
                key = name.replace(".", "/")
                self[f"{key}/dividend"] = OperandStep(sizes[0], one.dividend.raw, divides=False)
                self[f"{key}/divisor"] = OperandStep(sizes[1], one.divisor.raw, divides=True)

    def named(self) -> dict[str, Step]:
        """Return the steps by the names of the stand-ins."""
        return {name.replace("/", "."): step for name, step in self.items()}  # type: ignore[misc]

    def normalising(self) -> dict[str, NormalisingStep]:
        """Return those that compute a softmax or a normalisation."""
        return {name: step for name, step in self.named().items() if isinstance(step, NormalisingStep)}

    def normalisers(self, net: nn.Module, exact: bool) -> Functions:
        """Return what stands in for each softmax and normalisation, by name, as `substitute` takes it.

        Args:
            net: the network.
            exact: as in `round_to_step`.
        """
        return {name: partial(step.compute, net=net, exact=exact) for name, step in self.normalising().items()}

    def hooks(self, before: Functions, after: Functions, exact: bool) -> tuple[Functions, Functions]:
        """Return what rounds what enters modules and what leaves them, by name, as `substitute` takes them.

        Args:
            before: what others round of what enters.
            after: the same of what leaves.
            exact: as in `round_to_step`.
        """
        made = self.named().items()
        own = (
            {n: partial(s.entering, exact=exact) for n, s in made if s.rounds[0]},
            {n: partial(s.leaving, exact=exact) for n, s in made if s.rounds[1]},
        )
        return {**before, **own[0]}, {**after, **own[1]}


def _step(stand_in: StandIn, found: Found | None) -> Step:
    entering, leaving = (found.entering, found.leaving) if found else (0.0, 0.0)
    if stand_in.normalises:
        return NormalisingStep(stand_in, entering)
    return Step(entering if stand_in.raw else None, leaving if stand_in.result_rounded else None)
