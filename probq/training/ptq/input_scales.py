"""Data sets the inputs' scales before a fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from probq.codebooks import Ladder
from probq.likelihoods import as_network_likelihood
from probq.network.distributions.observation import Observation
from probq.network.program.program import Program
from probq.network.program.substitution import running, substitute
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import arguments

ROWS = 512
SPARING = 2  # bits, up to which levels that no value reaches are a loss to speak of


@torch.no_grad()
def set_input_scales(q: Program, data: Batches, targets: bool = True) -> None:
    """Set the scales of all inputs, those around non-linear functions and the steps of constants from 512 examples.

    They run through the float network; a noise that is learned starts at the root mean square of its residuals, and
    stays as it is where the batches' targets only stand in for absent ones.

    Args:
        q: the network.
        data: the batches.
        targets: whether their targets are those of the examples.

    Raises:
        ProbqError: if one of the layers is not reached by these examples.

    Warns:
        UserWarning: where an input has negative values and its ladder none; they will be cut off. Also where it has
            none and a ladder of at most 2 bits has, which it then lacks.
    """
    samples: dict[str, list[Tensor]] = {name: [] for name in (*q.input_names, *q.activations)}
    sizes = {name: [0.0, 0.0] for name in q.steps.named()}
    entering, leaving = ({name: _measure(kept, side) for name, kept in sizes.items()} for side in (0, 1))
    likelihood = as_network_likelihood(q.likelihood)
    starts = targets and likelihood.needs_residuals
    residuals: list[list[Tensor]] = [[] for _ in likelihood.members]
    rows = 0
    with q.evaluating():
        for x, y in data:
            recorders = {name.removesuffix(".input"): _recorder(kept) for name, kept in samples.items()}
            with running(x):
                output = substitute(q.net, {}, recorders | entering, {}, *arguments(x), results=leaving)
            if starts:
                sites = Observation(q.law(output, y)).sites(y)
                for kept, member, (_, own, target) in zip(residuals, likelihood.members, sites, strict=True):
                    if member.needs_residuals:
                        kept.append((target - own.law.mean).reshape(-1))
            rows += y.shape[0]
            if rows >= ROWS:
                break
    for name, quantizer in q.inputs.items():
        sample = _joined(name, samples[name])
        quantizer.calibrate(sample)
        if misfit := _misfit(quantizer.ladder, float(sample.min())):
            warnings.warn(f"{name} {misfit} for it", UserWarning, stacklevel=2)
    for name, activation in q.activations.items():
        activation.calibrate(_joined(name, samples[name]), q.net.get_submodule(name).forward)
    for name, step in q.steps.named().items():
        if max(sizes[name]):  # else no example reached it, and it keeps what it has
            step.set(*sizes[name])
    if starts:
        for kept, member in zip(residuals, likelihood.members, strict=True):
            if kept:
                member.start(torch.cat(kept))
    q.calibrated = True


def _joined(name: str, parts: list[Tensor]) -> Tensor:
    """Return all numbers of several calls as one axis.

    Raises:
        ProbqError: if there were none.
    """
    if not parts:
        raise ProbqError(f"no example reaches {name}; give those on which the whole network runs")
    return torch.cat([part.reshape(-1) for part in parts])


def _misfit(ladder: Ladder, least: float) -> str | None:
    """Return why a ladder does not suit the sign of an input with this least value, and which one does."""
    if not ladder.signed and least < 0:
        return (
            f"has negative values (least: {least:.3g}) but an unsigned ladder; they will be cut off. Use "
            "ladder(..., signed=True)"
        )
    if ladder.signed and least >= 0 and any(0 < bits <= SPARING for bits in ladder.bits):
        return (
            f"is never negative, but its ladder has negative levels, for which {SPARING} bits or less have no room. "
            "Use ladder(..., signed=False)"
        )
    return None


def _measure(kept: list[float], side: int) -> Callable[[Tensor], Tensor]:
    def measure(x: Tensor) -> Tensor:
        kept[side] = max(kept[side], float(torch.where(x.isfinite(), x, 0).abs().max()))
        return x

    return measure


def _recorder(kept: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def record(x: Tensor) -> Tensor:
        kept.append(x.detach().clone())  # what comes next may work in place
        return x

    return record
