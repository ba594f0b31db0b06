"""Operations with constants give numbers of 18 bits here, in a step that the example's largest value sets.

y = step clip(floor(x / step + 1/2), -2^17, 2^17 - 1)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from probq.codebooks.rounding.nearest import half_up_through
from probq.codebooks.rounding.short_numbers import short_step
from probq.network.quantizers.base import error_of_sums
from probq.network.tracing.call_finder import Found
from probq.network.tracing.stand_ins import StandIn

Functions: TypeAlias = dict[str, Callable[[Tensor], Tensor]]

BITS = 18  # of what is rounded: 12 below the largest value or the deviation plus mean, so nothing usual is cut off
LOWEST, HIGHEST = -(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1


def round_to_step(x: Tensor, step: Tensor, exact: bool) -> Tensor:
    """Return multiples of a step, half up, of 18 bits, with the gradient of what is not cut off.

    Args:
        x: numbers.
        step: a power of two, a scalar.
        exact: whether `x` are sums in float64, of which what rounding errors took is given back.
    """
    error = error_of_sums(x) if exact else 0.0
    return step * half_up_through((x + error) / step).clamp(LOWEST, HIGHEST)


class Step(nn.Module):
    """A step rounds what enters and what leaves an operation with a constant; neither costs bit operations.

    Args:
        entering: largest magnitude of what enters, on an example; None: it is not rounded.
        leaving: the same of what leaves.

    Attributes:
        log2_steps: exponents of both steps, `[2]`.
    """

    def __init__(self, entering: float | None, leaving: float | None) -> None:
        super().__init__()
        self.rounds = entering is not None, leaving is not None
        self.log2_steps: Tensor
        self.register_buffer("log2_steps", torch.zeros(2))
        self.set(entering or 0.0, leaving or 0.0)

    @torch.no_grad()
    def set(self, entering: float, leaving: float) -> None:
        """Set both steps by the largest magnitudes: 12 binary digits below, room for 32 times as much above."""
        sizes = torch.tensor([entering, leaving], dtype=torch.float64, device=self.log2_steps.device)
        self.log2_steps.copy_(torch.log2(short_step(sizes)))

    def exponent(self, leaving: bool) -> int:
        """Return the exponent of the step of what enters, or leaves."""
        return round(float(self.log2_steps[int(leaving)]))

    def entering(self, x: Tensor, exact: bool) -> Tensor:
        """Return what enters, rounded: the network's own input, which floating point has taken nothing from."""
        return round_to_step(x, torch.exp2(self.log2_steps[0]).to(x.dtype), exact=False)

    def leaving(self, y: Tensor, exact: bool) -> Tensor:
        """Return what leaves, rounded."""
        return round_to_step(y, torch.exp2(self.log2_steps[1]).to(y.dtype), exact)


class Steps(nn.ModuleDict):
    """The steps of a network are those of its operations with constants, by the names of their stand-ins."""

    def take(self, made: Mapping[str, StandIn], found: Mapping[str, Found] | None = None) -> None:
        """Make a step for each operation with a constant.

        Args:
            made: the network's stand-ins by name.
            found: the magnitudes of an example; None leaves the steps to be loaded.
        """
        for name, one in made.items():
            if not one.tabulated:
                self[name.replace(".", "/")] = _step(one, found[name] if found else None)

    def named(self) -> dict[str, Step]:
        """Return the steps by the names of the stand-ins."""
        return {name.replace("/", "."): step for name, step in self.items()}  # type: ignore[misc]

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
    return Step(entering if stand_in.raw else None, leaving)
