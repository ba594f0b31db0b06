"""Steps of their own, of normalisations and of constants, are rounded here by NumPy, as 18 bits are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probq.network.program.program import Program
from probq.network.quantizers.affine_norms import OF_INPUT
from probq.network.quantizers.normalising import NormalisingStep
from probq.network.tracing.module_kinds import NORMS
from probq.network.tracing.routing import routed
from probq.network.tracing.stand_ins import stand_ins
from probq.testing.normaliser_oracle import normalised_rows


def with_steps(q: Program, net: nn.Module) -> nn.Module:
    """Return a network that rounds what normalisations and operations with constants of `net` give, a copy of its own.

    Args:
        q: the network that the steps are of.
        net: a plain float64 copy of it, normalisations gone where they are folded.
    """
    for name, stand_in in stand_ins(net):
        if name in q.steps.normalising():
            step = q.steps.normalising()[name]
            stand_in.register_forward_hook(lambda _, args, y, s=step: _in_rows(s, args))
        elif name in q.steps.named():
            exponents = q.steps.named()[name].log2_steps.double().numpy()
            if stand_in.result_rounded:
                stand_in.register_forward_hook(lambda _, args, y, e=exponents[1]: _in_steps(y, e))
            if stand_in.raw:
                stand_in.register_forward_pre_hook(lambda _, args, e=exponents[0]: (_in_steps(args[0], e), *args[1:]))
    for norm in [m for m in net.modules() if isinstance(m, NORMS)]:
        taken: nn.Module = norm._modules.get(OF_INPUT) or norm
        taken.register_forward_hook(lambda _, args, y, norm=norm: _affine(norm, args[0]))
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


def _in_rows(step: NormalisingStep, args: tuple[Any, ...]) -> Tensor:
    """Return a softmax or normalisation by integers without end, its gain and shift as multiples of steps."""
    gain, shift = (None if part is None else _numbers(part) for part in args[1:])
    y = normalised_rows(step.kind, step.options, float(step.log2_steps[0]), _numbers(args[0]))
    if gain is None and shift is None:
        return torch.from_numpy(y)
    gain, shift = (np.array(0.0 if part is None else part) for part in (gain, shift))
    gain = np.ones_like(shift) if args[1] is None else gain
    place = (np.abs(gain) + np.abs(shift)).max()
    step_of = _power(place) - 12
    finest = max(_power(np.abs(gain).max()) - 12, step_of - 8)
    shape = gain.shape if "axes" in step.options else [-1] + [1] * (y.ndim - 2)
    gain, shift = (
        (np.round(part / 2.0**e) * 2.0**e * np.ones_like(gain)).reshape(shape)
        for part, e in ((gain, finest), (shift, step_of))
    )
    return _in_steps(torch.from_numpy(y * gain + shift), step_of)


def _power(size: float) -> int:
    """Return the exponent of the power of two nearest to a number."""
    mantissa, exponent = np.frexp(size)
    return int(exponent) - (mantissa < 0.75)


def _in_steps(x: Tensor, exponent: float) -> Tensor:
    """Return numbers rounded half up to multiples of a power of two, of 18 bits."""
    steps = np.floor(_numbers(x) / 2.0**exponent + 0.5)
    return torch.from_numpy(steps.clip(-(2**17), 2**17 - 1) * 2.0**exponent)


def _affine(norm: Any, x: Tensor) -> Tensor:
    """Return a normalisation with gains of 12 binary digits, rounded to 18 bits of which 12 are below its deviation."""
    weight, bias = _numbers(norm.weight), _numbers(norm.bias)
    mantissa, exponent = np.frexp(weight / np.sqrt(_numbers(norm.running_var) + norm.eps))
    gain = np.ldexp(np.round(mantissa * 2**12), exponent - 12)
    exponent = _power((np.abs(weight) + np.abs(bias)).max()) - 12
    shift = np.round((bias - _numbers(norm.running_mean) * gain) / 2.0**exponent) * 2.0**exponent
    shape = [-1] + [1] * (x.dim() - 2)
    return _in_steps(torch.from_numpy(_numbers(x) * gain.reshape(shape) + shift.reshape(shape)), exponent)


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()
