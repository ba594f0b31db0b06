"""Statistics from data: the inputs' scales before a fit, batch normalisation once widths are decided."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from probq.batches import Batches
from probq.codebooks import Ladder
from probq.likelihoods import Likelihood, Normal, for_target, only_tensor
from probq.program import Observation, Program
from probq.substitute import running, substitute
from probq.tracing.arguments import arguments
from probq.tracing.module_kinds import NORMS

ROWS = 512
NORM_BATCHES = 20
LEAST_SD = 1e-6
SPARING = 2  # bits, up to which levels that no value reaches are a loss to speak of


@torch.no_grad()
def calibrate(q: Program, data: Batches) -> None:
    """Set the scales of all inputs, and those around non-linear functions, from the first 512 examples.

    They run through the float network; a noise that is learned starts at the root mean square of its residuals.

    Warns:
        UserWarning: where an input has negative values and its ladder none; they will be cut off. Also where it has
            none and a ladder of at most 2 bits has, which it then lacks.
    """
    samples: dict[str, list[Tensor]] = {name: [] for name in (*q.input_names, *q.activations)}
    residuals: list[Tensor] = []
    rows = 0
    with q.evaluating():
        for x, y in data:
            recorders = {name.removesuffix(".input"): _recorder(kept) for name, kept in samples.items()}
            with running(x):
                output = substitute(q.net, {}, recorders, {}, *arguments(x))
            if isinstance(q.likelihood, Normal):
                law = q.law(output, y)
                residuals.append((Observation(law).shaped(y) - law.mean).reshape(-1))
            rows += y.shape[0]
            if rows >= ROWS:
                break
    for name, quantizer in q.inputs.items():
        sample = torch.cat([part.reshape(-1) for part in samples[name]])
        quantizer.calibrate(sample)
        if misfit := _misfit(quantizer.ladder, float(sample.min())):
            warnings.warn(f"{name} {misfit} for it", UserWarning, stacklevel=2)
    for name, activation in q.activations.items():
        activation.calibrate(torch.cat([part.reshape(-1) for part in samples[name]]), q.net.get_submodule(name).forward)
    if isinstance(q.likelihood, Normal) and q.likelihood.log_sd.requires_grad:
        sd = torch.cat(residuals).double().square().mean().sqrt()
        q.likelihood.log_sd.copy_(sd.clamp_min(LEAST_SD).log())
    q.calibrated = True


def _misfit(ladder: Ladder, least: float) -> str | None:
    """Why a ladder does not suit the sign of an input whose least value this is, and which one does."""
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


def _recorder(kept: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def record(x: Tensor) -> Tensor:
        kept.append(x.detach().clone())  # what comes next may work in place
        return x

    return record


@torch.no_grad()
def usual_likelihood(q: Program, x: Any, y: Tensor) -> Likelihood:
    """The likelihood that `for_target` takes for a batch and what the float network makes of it."""
    if y.is_floating_point():
        return for_target(y)
    with q.evaluating(), running(x):
        output = substitute(q.net, {}, {}, {}, *arguments(x))
    return for_target(y, only_tensor(output))


@torch.no_grad()
def check_targets(q: Program, x: Any, y: Tensor) -> None:
    """Raise unless the targets of a batch can come from the likelihood's law for what the float network computes."""
    with q.evaluating(), running(x):
        output = substitute(q.net, {}, {}, {}, *arguments(x))
    Observation(q.law(output, y)).log_prob(y)


def has_norms(q: Program) -> bool:
    """Whether the network has batch normalisation whose statistics training estimates."""
    return bool(_norms(q))


def _norms(q: Program) -> list[Any]:
    named = q.net.named_modules()
    return [m for name, m in named if isinstance(m, NORMS) and m.track_running_stats and name not in q.held]


@torch.no_grad()
def estimate_norms(q: Program, data: Iterable[Any]) -> None:
    """Re-estimate the statistics of batch normalisation at fixed widths, as averages over 20 batches.

    Source: X. Sun et al., 2019, "Hybrid 8-bit Floating Point (HFP8) Training and Inference for Deep Neural Networks"
    (batch-norm re-tuning after quantization).
    """
    norms = _norms(q)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    try:
        for number, (x, _) in enumerate(islice(data, NORM_BATCHES), 1):
            for norm in norms:
                norm.momentum = 1 / number
            with running(x):
                decided_output(q, arguments(x))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def decided_output(q: Program, args: tuple[Any, ...]) -> Any:
    """Output at fixed widths with every code at its mode, normalisation as it stands."""
    onehots = {name: quantizer.probs() for name, quantizer in q.named_quantizers()}
    rungs = {name: q.rung(name, onehots[name]) for name in q.weights}
    levels = {n: w.law(q.location(n, rungs[n]), rungs[n], nearest=1).rsample() for n, w in q.weights.items()}
    return q.run(onehots, levels, args)
