"""Steps of their own, of normalisations and of constants, are rounded here by NumPy, as 18 bits are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probq.network.program.program import Program
from probq.network.tracing.module_kinds import NORMS
from probq.network.tracing.routing import routed
from probq.network.tracing.stand_ins import stand_ins


def with_steps(q: Program, net: nn.Module) -> nn.Module:
    """Return a network that rounds what normalisations and operations with constants of `net` give, a copy of its own.

    Args:
        q: the network that the steps are of.
        net: a plain float64 copy of it, normalisations gone where they are folded.
    """
    for name, stand_in in stand_ins(net):
        if name in q.steps.named():
            exponents = q.steps.named()[name].log2_steps.double().numpy()
            stand_in.register_forward_hook(lambda _, args, y, e=exponents[1]: _in_steps(y, e))
            if stand_in.raw:
                stand_in.register_forward_pre_hook(lambda _, args, e=exponents[0]: (_in_steps(args[0], e), *args[1:]))
    for norm in [m for m in net.modules() if isinstance(m, NORMS)]:
        norm.register_forward_hook(lambda norm, args, _: _affine(norm, args[0]))
    return _Routed(net)


class _Routed(nn.Module):
    """This network calls stand-ins in the place of functions."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *args: Any) -> Any:
        """Return the network's output."""
        with routed(self.net):
            return self.net(*args)

    def get_parameter(self, target: str) -> nn.Parameter:
        """Return a parameter by the name that it has in the network given."""
        return self.net.get_parameter(target)


def _in_steps(x: Tensor, exponent: float) -> Tensor:
    """Return numbers rounded half up to multiples of a power of two, of 18 bits."""
    steps = np.floor(_numbers(x) / 2.0**exponent + 0.5)
    return torch.from_numpy(steps.clip(-(2**17), 2**17 - 1) * 2.0**exponent)


def _affine(norm: Any, x: Tensor) -> Tensor:
    """Return a normalisation with gains of 12 binary digits, rounded to 18 bits of which 12 are below its deviation."""
    weight, bias = _numbers(norm.weight), _numbers(norm.bias)
    mantissa, exponent = np.frexp(weight / np.sqrt(_numbers(norm.running_var) + norm.eps))
    gain = np.ldexp(np.round(mantissa * 2**12), exponent - 12)
    size, power = np.frexp((np.abs(weight) + np.abs(bias)).max())
    exponent = int(power) - (size < 0.75) - 12
    shift = np.round((bias - _numbers(norm.running_mean) * gain) / 2.0**exponent) * 2.0**exponent
    shape = [-1] + [1] * (x.dim() - 2)
    return _in_steps(torch.from_numpy(_numbers(x) * gain.reshape(shape) + shift.reshape(shape)), exponent)


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()
