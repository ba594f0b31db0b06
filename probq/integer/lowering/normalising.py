"""Softmax and normalisation become one integer operation each, along the last axis."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from probq.integer.lowering.exported import innermost
from probq.integer.lowering.operations.arithmetic import affine
from probq.integer.lowering.operations.data_movement import permute, reshape
from probq.integer.lowering.operations.requantize import RoundingTarget
from probq.integer.lowering.operations.requantizer import Requantizer
from probq.integer.lowering.operations.values import Value, refusal
from probq.integer.normalisers.meaning import largest
from probq.integer.normalisers.tables import (
    ARGUMENT_BITS,
    EXPONENTIAL_BITS,
    MOST_CLASSES,
    MOST_NORMALISED,
    OUTPUT_BITS,
    PROBABILITY_BITS,
    coarse,
    fine,
    least_square,
    logarithms,
    octaves,
    root_bits,
)
from probq.network.quantizers.normalising import NormalisingStep
from probq.network.quantizers.rounding_step import BITS, LOWEST
from probq.network.tracing.stand_ins import StandIn, is_stand_in


def normalised(
    step: NormalisingStep, name: str, x: Value, where: str, net: nn.Module, requantizer: Requantizer
) -> Value:
    """Return what a softmax or a normalisation makes of a value.

    Args:
        step: the roundings.
        name: of its stand-in.
        x: the value.
        where: operation and module, for messages.
        net: the network.
        requantizer: rounds what enters.
    """
    order = _order(step, x)
    shape = _rows(step, tuple(x.shape[axis] for axis in order))
    _check(step, where, shape[-1])
    exponent, bits = step.rounding(shape[-1])
    rounded = requantizer(x, RoundingTarget(exponent, -(2 ** (bits - 1)), 1, 2**bits), name)
    moved = permute(rounded, where, tuple(x.shape[axis] for axis in order), [0, *(axis + 1 for axis in order)])
    moved = rounded if order == sorted(order) else moved
    made = _operation(step, moved if moved.shape == shape else reshape(moved, where, shape), where, exponent)
    if order != sorted(order):
        return permute(made, where, x.shape, [0, *(int(axis) + 1 for axis in np.argsort(order))])
    made = made if made.shape == x.shape else reshape(made, where, x.shape)
    own = step.affine(net, torch.empty(1, *x.shape, device="meta"))
    if own is None:
        return made
    gain, shift = own.gain.detach().numpy(), own.shift.detach().numpy()
    return requantizer(affine(made, where, gain, shift), short_target(own.step), name)


def is_left_in_float(net: nn.Module, node: Any) -> bool:
    """Return whether an operation of a network is a softmax that its plan leaves in float."""
    name = innermost(node)
    module = net.get_submodule(name) if is_stand_in(name) else None
    return isinstance(module, StandIn) and module.left_in_float


def short_target(step: Any) -> RoundingTarget:
    """Return the levels that `round_to_step` rounds to.

    Args:
        step: a power of two, a scalar tensor.
    """
    return RoundingTarget(round(math.log2(float(step))), LOWEST, 1, 2**BITS)


def _order(step: NormalisingStep, x: Value) -> list[int]:
    """Return the axes of a value, that of a softmax last."""
    axes = list(range(len(x.shape)))
    if step.is_softmax:
        axes.append(axes.pop(step.options["axis"]))
    return axes


def _rows(step: NormalisingStep, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape with one last axis of what is normalised together."""
    if step.is_softmax:
        return shape
    kept = shape[: len(shape) - step.options["axes"]] if "axes" in step.options else (_groups(step, shape),)
    return (*kept, math.prod(shape) // math.prod(kept))


def _groups(step: NormalisingStep, shape: tuple[int, ...]) -> int:
    return int(step.options.get("groups", shape[0]))


def _check(step: NormalisingStep, where: str, count: int) -> None:
    most = MOST_CLASSES if step.is_softmax else MOST_NORMALISED
    if count > most:
        raise refusal(
            where, f"it normalises {count:,} numbers together, and integers of 62 bits do {most:,}; use a shorter axis"
        )
    if count == 1 and not step.is_softmax:
        raise refusal(where, "it normalises each number by itself, whatever it is; take it out, or use fewer groups")


def _operation(step: NormalisingStep, x: Value, where: str, exponent: int) -> Value:
    """Return what normalises a value along its last axis."""
    count = x.shape[-1]
    tensors: dict[str, np.ndarray] = {}
    if step.kind == "softmax":
        bits, ends, tensors = PROBABILITY_BITS, (0, 2**PROBABILITY_BITS), {"coarse": coarse(), "fine": fine()}
        attributes: dict[str, Any] = {"dropped": EXPONENTIAL_BITS, "bits": bits}
    elif step.kind == "log_softmax":
        bits, factor = OUTPUT_BITS, 2 ** (OUTPUT_BITS - ARGUMENT_BITS)
        tensors = {"coarse": coarse(), "fine": fine(), "octaves": octaves(count), "logarithms": logarithms()}
        spread = (int(x.high.max()) - int(x.low.min())) * factor
        ends = -spread - int(tensors["octaves"][-1]) - int(logarithms()[-1]), 0
        attributes = {"dropped": EXPONENTIAL_BITS, "factor": factor}
    else:
        bits, end = OUTPUT_BITS, largest(count, OUTPUT_BITS)
        eps, ends = least_square(count, step.options["eps"], exponent), (-end, end)
        attributes = {"centred": step.centred, "eps": eps, "root": root_bits(count), "bits": bits}
    op = step.kind if step.is_softmax else "normalise"
    low, high = map(np.array, ends)
    return Value(op, (x,), x.shape, where, np.array(-bits), 1, low, high, attributes, tensors)
