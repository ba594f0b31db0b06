"""A non-linear function becomes a table of integers when it stands between two roundings of fixed width."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from probq.codebooks import Grid, ladder
from probq.network.quantizers.base import InputQuantizer, error_of_sums, error_of_values
from probq.network.quantizers.plan import Plan
from probq.network.tracing.stand_ins import StandIn
from probq.network.tracing.trace import Tracing

NON_NEGATIVE = (nn.Sigmoid, nn.Hardsigmoid, nn.Softplus)

Function = Callable[[Tensor], Tensor]


class Activation(nn.Module):
    """An activation computes `round(f(round(x)))`, with roundings to levels of `bits` bits times powers of two.

    Neither width is learned, and neither costs bit operations; the two scales are trained like those of inputs.

    Args:
        bits: width of the numbers in front of the function and behind it.
        signed: whether the function takes negative values; its argument always may.
        sample: an argument that sets the scales, and the function. A meta tensor leaves them to be loaded.
        function: `f`, of one number each.

    Attributes:
        input, output: the quantizers in front and behind.
    """

    def __init__(self, bits: int, signed: bool, sample: Tensor, function: Function) -> None:
        super().__init__()
        unset = torch.empty(0, device="meta")
        self.bits, self.signed = bits, signed
        self.input = InputQuantizer(ladder(bits, signed=True), unset)
        self.output = InputQuantizer(ladder(bits, signed=signed), unset)
        if not sample.is_meta:
            self.calibrate(sample, function)

    @torch.no_grad()
    def calibrate(self, sample: Tensor, function: Function) -> None:
        """Set both scales to those with the least squared rounding error, of the argument and of the function."""
        self.input.calibrate(sample)
        self.output.calibrate(function(sample.clone()))

    def before(self, x: Tensor, exact: bool) -> Tensor:
        """Return the rounded argument.

        It is a copy, because a function may work in place.
        """
        return self.input(x, self.input.probs(), error_of_sums(x) if exact else None).clone()

    def after(self, y: Tensor, exact: bool) -> Tensor:
        """Return the rounded value of the function, 0 where it has none, as a root of what is negative.

        It is a copy, because what follows may work in place.
        """
        y = torch.where(y.isnan(), 0.0, y)
        return self.output(y, self.output.probs(), error_of_values(y) if exact else None).clone()

    @torch.no_grad()
    def table(self, function: Function) -> tuple[Grid, Tensor]:
        """Return the argument's grid, and the value at each of its levels, float64 `[2^bits]`.

        It is computed as the decided network computes, in float64. What one and the same function gives in two places
        may differ in its last bits, which the rounding does not see: it takes what is 2^-44 below a tie as one.
        """
        grid: Any = self.input.levels(0)
        levels = grid.start + grid.step * torch.arange(grid.count, dtype=torch.float64)
        values = self.after(function(levels * self.input.scales()[0].double()), exact=True)
        return grid, values / self.output.scales()[0].double()


def activations(net: nn.Module, found: Tracing, plans: Mapping[str, Plan | None]) -> dict[str, Activation]:
    """Return an `Activation` for each module of `probq.network.tracing.module_kinds.TABLES` and each call of its like.

    They have the name of the module, or of the call's stand-in. A softmax whose plan has no
    `activation` is left in float.

    Args:
        net: the network.
        found: what a run of it showed.
        plans: the plans of the layers by name; a function has that of the layer last called before it.
    """
    made: dict[str, Activation] = {}
    for name, (layer, sample) in found.activations.items():
        plan, module = plans.get(layer or next(iter(plans), "")), net.get_submodule(name)
        if isinstance(module, StandIn) and module.normalises:
            if plan is None or plan.activation is None:
                module.leave_in_float()
        elif plan is not None and plan.activation is not None:
            signed = module.signed if isinstance(module, StandIn) else not isinstance(module, NON_NEGATIVE)
            made[name] = Activation(plan.activation, signed, sample, module.forward)
    return made


def hooks(made: Mapping[str, Activation], exact: bool) -> tuple[dict[str, Function], dict[str, Function]]:
    """Return what rounds each activation's input, and what rounds its output, by name, as `substitute` takes them."""
    before: dict[str, Function] = {name: partial(a.before, exact=exact) for name, a in made.items()}
    after: dict[str, Function] = {name: partial(a.after, exact=exact) for name, a in made.items()}
    return before, after
