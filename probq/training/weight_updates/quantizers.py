"""Scales and levels of a network at fixed widths are set in closed form here."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from probq.codebooks.rounding.scales import hardware_scale
from probq.decisions.widths import widths_are_fixed
from probq.network.program.program import check_posterior
from probq.network.quantized.quantized import Quantized
from probq.network.quantizers.weight import WeightQuantizer
from probq.training.weight_updates.closed_forms import ROUNDS, weighted_levels, weighted_scale
from probq.utils.errors import ProbqError


def fit_scales(q: Quantized, rounds: int = ROUNDS) -> Quantized:
    """Return the network with weight scales of least squared error, each found from the present one.

    Binary weights get `mean |w|` of what shares a scale, the others codes and scales by turns; then hardware rounds
    scales to its multipliers, as always.

    Args:
        q: a network whose widths are fixed.
        rounds: number of turns.

    Raises:
        ProbqError: if a width is not fixed, or a weight has scales that widths do not follow (`gates="weight"`), or
            codes that no scale decides (vectors, `free_codes=True`).
    """
    result = copied(q, "fit_scales")
    for name, quantizer in result.weights.items():
        weight = result.net.get_parameter(name).detach()
        set_scale(quantizer, weight, torch.ones_like(weight), rounds)
    return result


def fit_levels(q: Quantized, rounds: int = ROUNDS) -> Quantized:
    """Return the network with learned levels that are the means of the weights rounded to them, by turns.

    Levels are rounded to multiples of 1/16 of the scale, as always; where that would be worse than what was there, a
    weight keeps its levels. Other codebooks stay.

    Args:
        q: a network whose widths are fixed.
        rounds: number of turns.

    Raises:
        ProbqError: if a width is not fixed, or no weight has a learned codebook.

    Example:
        >>> import probq
        >>> plan = probq.Plan(probq.codebooks.ladder(probq.codebooks.learned([-2, -1, 1, 2])), scales="tensor")
        >>> q = probq.quantize(torch.nn.Sequential(torch.nn.Linear(4, 4)), torch.rand(8, 4), plan)
        >>> fitted = fit_levels(q)
    """
    result, found = copied(q, "fit_levels"), False
    for name, quantizer in result.weights.items():
        rung = int(quantizer.probs().argmax(-1).reshape(-1)[0])
        if quantizer.ladder.rungs[rung].learned:
            found = True
            _set_levels(quantizer, rung, result.net.get_parameter(name).detach(), rounds)
    if not found:
        raise ProbqError(
            "fit_levels has no effect on a network without learned levels; give a plan with "
            "weight=probq.codebooks.ladder(probq.codebooks.learned(...))"
        )
    return result


def copied(q: Quantized, function: str) -> Quantized:
    """Return a copy of a network whose widths are fixed.

    Raises:
        ProbqError: if one is not, or a weight has codes or scales that the function cannot set.
    """
    check(q, function)
    return copy.deepcopy(q)


def check(q: Quantized, function: str) -> None:
    """Raise unless all widths are fixed, and scales and codes follow from real weights."""
    check_posterior(q, function)
    if not widths_are_fixed(q):
        raise ProbqError(f"{function} takes a network whose widths are fixed: q.at(q.mode(budget))")
    for name, quantizer in q.weights.items():
        shared = tuple(quantizer.log2_scale.shape[1:])
        if quantizer.free_codes or quantizer.ladder.has_vectors or quantizer.gates not in ((), shared):
            raise ProbqError(
                f"{function} sets scales for real weights and their nearest codes, which {name} has not; use a plan "
                'without free_codes=True, vector codebooks and gates="weight"'
            )


@torch.no_grad()
def set_scale(quantizer: WeightQuantizer, weight: Tensor, curvature: Tensor, rounds: int) -> None:
    """Set the scale of the fixed rung to that of least `sum d (a b - w)^2`."""
    index = quantizer.probs().argmax(-1)
    rung = quantizer.rung(index)
    found, _ = weighted_scale(weight, curvature, rung.levels, rung.scale.expand(quantizer.log2_scale.shape[1:]), rounds)
    for k in range(len(quantizer.ladder)):
        quantizer.log2_scale[k] = torch.where(index == k, found.log2(), quantizer.log2_scale[k])


@torch.no_grad()
def _set_levels(quantizer: WeightQuantizer, rung: int, weight: Tensor, rounds: int) -> None:
    scale = hardware_scale(quantizer.log2_scale, quantizer.multipliers)[rung]
    table, ones = quantizer.tables[str(rung)], torch.ones_like(weight)
    before, start = _error(quantizer, rung, weight / scale), table.clone()
    table.copy_(weighted_levels(weight / scale, ones * scale.square(), _table(quantizer, rung), rounds))
    levels = _table(quantizer, rung)
    if _error(quantizer, rung, weight / scale) > before or (levels[1:] <= levels[:-1]).any():
        table.copy_(start)


def _table(quantizer: WeightQuantizer, rung: int) -> Tensor:
    levels = quantizer.levels(rung)
    assert isinstance(levels, Tensor)  # as a learned codebook has
    return levels


def _error(quantizer: WeightQuantizer, rung: int, u: Tensor) -> Tensor:
    levels = _table(quantizer, rung)
    scale = hardware_scale(quantizer.log2_scale, quantizer.multipliers)[rung]
    return ((u.unsqueeze(-1) - levels).abs().amin(-1) * scale).square().sum()
