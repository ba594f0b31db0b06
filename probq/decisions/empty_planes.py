"""Bit planes that the codes of a decided network leave empty are dropped, which narrows its weights."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor

from probq.codebooks.rounding.nearest import nearest_level
from probq.codebooks.rounding.scales import hardware_scale
from probq.decisions.widths import widths_are_fixed
from probq.network.program.program import Program, check_posterior
from probq.network.quantizers.weight import WeightQuantizer
from probq.utils.errors import ProbqError

AnyProgram = TypeVar("AnyProgram", bound=Program)
MOST_BITS = 16


@torch.no_grad()
def drop_planes(q: AnyProgram) -> AnyProgram:
    """Return a decided network with each weight on the narrowest rung that holds its codes exactly.

    Bits that are 0 in all codes of a weight take no room: where the highest ones are, a narrower codebook of the same
    step holds the codes, where the lowest ones are, one of a step `2^k` times as large; a weight of zeros alone is
    pruned, if its ladder has that rung. Every weight keeps its value to the last bit, at less cost; where steps grew,
    sums have larger steps, to which the bias is rounded. Codes come to leave planes empty under the priors
    `priors.BitPlanes` and `priors.DropBits`, in a fit at the decided widths with `rounding=False`; fitting and dropping
    may take turns.

    A free law of codes, a weight whose width is shared by a tie, and one with a width for each of its weights stay as
    they are.

    Args:
        q: a network whose widths are fixed, from `Quantized.at`.

    Returns:
        Another decided network.

    Raises:
        ProbqError: if a width is not decided.

    Source: H. Yang, L. Duan, Y. Chen, H. Li, 2021, "BSQ: Exploring Bit-Level Sparsity for Mixed-Precision Neural
    Network Quantization" (the adjustment of precision).

    Example:
        >>> import torch, probq
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[0.25, -0.75]]))
        >>> plan = probq.Plan(probq.codebooks.ladder(2, 3, 4), scales="tensor", profile="shift")
        >>> q = probq.quantize(net, torch.rand(4, 2), plan)
        >>> q.weights["0.weight"].log2_scale.data[2] = -3.0  # 4 bits: codes 2 and -6
        >>> drop_planes(q.at(q.mode())).mode().widths["0.weight"]
        3
    """
    check_posterior(q, "drop_planes")
    if not widths_are_fixed(q):
        raise ProbqError("drop_planes takes a network whose widths are fixed: q.at(q.mode(budget))")
    result = copy.deepcopy(q)
    tied = {*result.sites, *result.sites.values()}
    for name, quantizer in result.weights.items():
        shared = quantizer.log2_scale.shape[1:] if quantizer.gates else quantizer.gates
        if name not in tied and not quantizer.free_codes and tuple(shared) == quantizer.gates:
            for rung in range(len(quantizer.ladder) - 1):
                _narrow(result, name, rung)
    return result


def _narrow(q: Program, name: str, rung: int) -> None:
    """Move a weight to a rung, each channel with a width of its own by itself, where its codes fit there exactly."""
    quantizer = q.weights[name]
    now = quantizer.probs().argmax(-1)
    levels, before = _levels(q, name)
    shift, fits = _shifts(levels, quantizer, rung)
    moved = (fits if quantizer.gates else fits.all()) & (now > rung)
    if not moved.any():
        return
    fixed, scales = quantizer.fixed, quantizer.log2_scale.clone()
    steps = hardware_scale(scales, quantizer.multipliers).log2()
    own = steps.gather(0, now.expand(1, *steps.shape[1:]))[0]
    quantizer.log2_scale[rung] = torch.where(moved, own + shift, scales[rung])
    quantizer.fixed = torch.where(moved, rung, now)
    if not torch.equal(_levels(q, name)[1], before):  # such as where sums need more room than the codes
        quantizer.fixed = fixed
        quantizer.log2_scale.copy_(scales)


def _levels(q: Program, name: str) -> tuple[Tensor, Tensor]:
    """Return the levels of a decided weight, and its values."""
    rung = q.rung(name, q.weights[name].probs())
    levels = q.weights[name].law(q.location(name, rung), rung, nearest=1).mode
    return levels, levels * rung.scale


def _shifts(levels: Tensor, quantizer: WeightQuantizer, rung: int) -> tuple[Tensor, Tensor]:
    """Return how many lowest planes to drop for what shares a scale, and whether the rung then holds its levels."""
    shape = quantizer.log2_scale.shape[1:]
    shift = torch.zeros(shape, device=levels.device)
    fits = torch.zeros(shape, dtype=torch.bool, device=levels.device)
    for k in range(MOST_BITS):
        part = levels / 2**k
        here = (nearest_level(part, quantizer.levels(rung)) != part).double().sum_to_size(shape) == 0
        shift = torch.where(here & ~fits, float(k), shift)
        fits |= here
    return shift, fits
