"""Operations that are no layers give numbers of 18 bits here, in a step that the example's largest value sets.

y = step clip(floor(x / step + 1/2), -2^17, 2^17 - 1)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probq.codebooks.rounding.nearest import half_up_through
from probq.codebooks.rounding.short_numbers import short_step
from probq.network.quantizers.base import error_of_sums

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


class OperandStep(Step):
    """This step rounds one of the tensors of a quotient; a divisor is a step at least, so that nothing divides by 0.

    Args:
        size: its largest magnitude, on an example.
        raw: whether it is the network's own input.
        divides: whether it is the divisor.
    """

    def __init__(self, size: float, raw: bool, divides: bool) -> None:
        super().__init__(size, None)
        self.raw, self.divides = raw, divides

    def entering(self, x: Tensor, exact: bool) -> Tensor:
        """Return the tensor rounded."""
        step = torch.exp2(self.log2_steps[0]).to(x.dtype)
        y = round_to_step(x, step, exact and not self.raw)
        return torch.where(y == 0, step, y) if self.divides else y
