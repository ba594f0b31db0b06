"""Softmax and normalisation get numbers of a fixed step here, and give such numbers, as integers compute them.

What they give keeps 15 binary digits (probabilities) or 12 (all else); the learned width of the next layer's input
rounds it again, as it does with every other value.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log2

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from probq.codebooks.rounding.nearest import half_up_through
from probq.codebooks.rounding.short_numbers import short_addend, short_step
from probq.integer.normalisers.tables import ARGUMENT_BITS, OUTPUT_BITS, WIDEST, WIDEST_ARGUMENT, argument_bits
from probq.network.normalisers.kinds import SOFTMAXES, from_rows, spread_affine, to_rows
from probq.network.normalisers.simulation import log_probabilities, normalised, probabilities, through
from probq.network.quantizers.base import error_of_sums
from probq.network.quantizers.rounding_step import Step, round_to_step
from probq.network.tracing.stand_ins import StandIn

HIDDEN = 2.0**64  # masks have added it, or more
FINER = 8  # binary digits by which gains may be finer than what is added to them


@dataclass(frozen=True)
class Affine:
    """An affine part of a normalisation has short numbers, float64, that broadcast to a value without the batch.

    Attributes:
        gain: multiples of `2^-12` of the largest.
        shift: multiples of the step.
        step: of the result, a power of two, a scalar.
    """

    gain: Tensor
    shift: Tensor
    step: Tensor


class NormalisingStep(Step):
    """This step computes a softmax or a normalisation of numbers that it rounds first.

    A softmax takes multiples of `2^-10` of 22 bits, whatever their size. A normalisation takes 18 bits, less where it
    is of more than 4096 numbers, in a step that the example's largest magnitude sets as for any other operation, and no
    finer than `2^-12` of the root of its `eps`, which hides what is smaller.

    Args:
        stand_in: the call.
        entering: largest magnitude of what enters, on an example.
    """

    def __init__(self, stand_in: StandIn, entering: float) -> None:
        super().__init__(None, None)
        self.kind, self.options, self.raw = stand_in.kind, stand_in.kwargs, stand_in.raw
        self.set(entering, 0.0)

    def set(self, entering: float, leaving: float) -> None:
        """Set the step of what enters by the largest magnitude; one that only a mask has, as infinity, sets none."""
        super().set(entering if entering < HIDDEN else 0.0, 0.0)

    @property
    def is_softmax(self) -> bool:
        """Return whether it is a softmax, or the logarithm of one."""
        return self.kind in SOFTMAXES

    @property
    def centred(self) -> bool:
        """Return whether the mean is subtracted."""
        return self.kind != "rms_norm"

    def rounding(self, count: int) -> tuple[int, int]:
        """Return the exponent of what enters, and its bits.

        Args:
            count: how many numbers are normalised together.
        """
        if self.is_softmax:
            return -ARGUMENT_BITS, WIDEST_ARGUMENT
        bits, eps = argument_bits(count), self.options["eps"]
        exponent = self.exponent(leaving=False) + WIDEST - bits
        return (max(exponent, floor(log2(eps) / 2) - OUTPUT_BITS) if eps > 0 else exponent), bits

    def compute(self, x: Tensor, net: nn.Module, exact: bool) -> Tensor:
        """Return what it makes of a tensor.

        Args:
            x: what enters.
            net: the network whose gain and shift it has.
            exact: whether `x` is in float64, and what rounding errors took is given back.
        """
        rows = to_rows(x, self.kind, self.options)
        exponent, bits = self.rounding(rows.shape[-1])
        error = error_of_sums(self._unmasked(x, exponent, bits)) if exact and not self.raw else 0.0
        u = half_up_through(((rows + error) * 2.0**-exponent).clamp(-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1))
        y = through(self._integers(u.detach().long(), exponent), u * 2.0**exponent, self._function)
        y = from_rows(y, x, self.kind, self.options)
        affine = self.affine(net, x)
        if affine is None:
            return y
        gain, shift, step = (part.to(y.dtype) for part in (affine.gain, affine.shift, affine.step))
        return round_to_step(y * gain + shift, step, exact)

    def _unmasked(self, x: Tensor, exponent: int, bits: int) -> Tensor:
        """Return what a softmax takes without what masks have made so small that it is cut off."""
        return torch.where(x.abs() < 2.0 ** (bits - 1 + exponent), x, 0.0) if self.is_softmax else x

    def affine(self, net: nn.Module, x: Tensor) -> Affine | None:
        """Return the gain and shift of a normalisation of such tensors; None where it has neither."""
        names = [self.options.get(name) for name in ("gain", "shift")]
        own = [None if name is None else _tensor(net, name) for name in names]
        gain, shift = (None if part is None else spread_affine(part.double(), x, self.kind) for part in own)
        if gain is None and shift is None:
            return None
        gain = torch.ones_like(shift) if gain is None else gain  # type: ignore[arg-type]
        shift = torch.zeros_like(gain) if shift is None else shift
        step = short_step((gain.detach().abs() + shift.detach().abs()).max())
        finest = torch.maximum(short_step(gain.detach().abs().max()), step * 2.0**-FINER)
        return Affine(short_addend(gain, finest), short_addend(shift, step), step)

    def _integers(self, codes: Tensor, exponent: int) -> Tensor:
        if self.kind == "softmax":
            return probabilities(codes)
        if self.kind == "log_softmax":
            return log_probabilities(codes)
        return normalised(codes, self.centred, self.options["eps"], exponent)

    def _function(self, rows: Tensor) -> Tensor:
        """Return what real numbers become, normalised along the last axis."""
        if self.is_softmax:
            return (F.softmax if self.kind == "softmax" else F.log_softmax)(rows, -1)
        size, eps = list(rows.shape[-1:]), self.options["eps"]
        return F.layer_norm(rows, size, eps=eps) if self.centred else F.rms_norm(rows, size, eps=eps)


def _tensor(net: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer by its name."""
    owner, _, own = name.rpartition(".")
    tensor: Tensor = getattr(net.get_submodule(owner), own)
    return tensor
