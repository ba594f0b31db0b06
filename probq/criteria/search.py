"""`search` learns laws of widths by gradient for a short while; what they have learned is the energy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import cycle
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from probq.criteria.measuring.energies import energy_of
from probq.criteria.measuring.perturbed import Batch
from probq.criteria.measuring.quantizers_of import quantizers_of
from probq.criteria.measuring.ready import checked_examples
from probq.criteria.measuring.still_copy import check_finite, still_copy
from probq.network.program.program import Program
from probq.network.quantized.quantized import Quantized
from probq.priors.energies.energy import Energy
from probq.training.svi.objective import Objective
from probq.utils.arguments import check_number, check_seed
from probq.utils.errors import ProbqError
from probq.utils.random_stream import Stream
from probq.utils.structures.tensors import rows_of

RATE = 0.05  # of Adam, for the log-odds of the gates


def search(
    q: Quantized,
    batches: Iterable[Any],
    *,
    examples: int = 512,
    steps: int = 300,
    temperature: float = 0.1,
    of: str = "both",
    seed: int = 0,
    progress: bool = True,
) -> Energy:
    """`E_i(b) = log q_i(b_max) - log q_i(b)` in nats, after a short search on a copy for the laws `q_i` that minimise

        E_q[-log p(y | x)] + temperature sum_i KL(q_i || uniform)    (for one example).

    Only the gates move; float weights and scales stay still, and no budget holds. At the minimum, `temperature` times
    the energy, `energy.to_nats(temperature)`, is how much more the loss is in the mean over the widths of all others:
    quantizers are judged in each other's company, and all of them in one run. The energy is the mean over the second
    half of the search. Where a tensor has several gates, theirs are added.

    It takes `steps` training steps whatever the number of quantizers and rungs, where `loss` takes a pass for each.
    Gradients are those of `probq.estimators.SecondOrder`, with noise: near energies are not told apart.

    Args:
        q: from `quantize`.
        batches: as in `loss`; every step takes the next one of those that hold the first `examples`. For a language
            model, inputs are tokens `[batch, length]` or vectors, and targets the next tokens `[batch, length]`.
        examples: greatest number of examples, kept in memory.
        steps: number of steps, 2 or more.
        temperature: loss in nats for one example that a rung's probability falls e-fold with, above 0. Less of it
            keeps the others wide, and needs more steps.
        of: "weights" or "inputs" searches for these alone; others stay on their widest rung, with energy 0.
        seed: decides the draws.
        progress: show a progress bar.

    Raises:
        ProbqError: if there are no labels or no data, or no such quantizer has a choice.

    Source: J. Xu, S. Hu, J. Yu, X. Liu, H. Meng, 2021, "Mixed Precision Low-bit Quantization of Neural Network Language
    Models for Speech Recognition" (architecture search over widths); here by variational inference.

    Example:
        >>> import torch, probq
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x, y = torch.rand(32, 4), torch.arange(32) % 3
        >>> q = probq.quantize(net, x, probq.Plan(weight=probq.codebooks.ladder(2, 4, 8)))
        >>> search(q, [(x, y)], steps=4, progress=False)
        Energy(search, additive: 3 quantizers, 13 rungs)
    """
    check_number("steps", steps, 2)
    check_seed(seed)
    if not 0 < temperature < math.inf:
        raise ProbqError(f"temperature is a positive number of nats, not {temperature!r:.80}")
    data = checked_examples(q, batches, examples, "search", labels=True, of=of)
    size, names = sum(rows_of(x) for x, _ in data), quantizers_of(q, of)
    with Stream(seed).training():
        own = still_copy(q, data)
        _free(own, names)
        own.temperature = temperature * size
        bar = tqdm(range(steps), disable=not progress, unit="step", desc="search", dynamic_ncols=True)
        return energy_of(q, _searched(own, data, size, names, bar), "search", "nats of log-odds")


@torch.no_grad()
def _free(q: Program, names: Iterable[str]) -> None:
    """Let the gates of these quantizers move, from equally probable rungs and with the default estimator."""
    q.pairs = None
    for name, quantizer in q.named_quantizers():
        if q.sites.get(name, name) in names:
            quantizer.fixed = quantizer.width_prior = quantizer.chosen_estimator = None
            quantizer.logits.copy_(quantizer.prior().logits)
            quantizer.logits.requires_grad_(True)


def _searched(q: Program, data: list[Batch], size: int, names: Iterable[str], numbers: tqdm[int]) -> dict[str, Any]:
    """Move the gates and return the mean energies of the second half of the steps."""
    objective, last = Objective(q, size, draws=1), len(numbers)
    optimizer = torch.optim.Adam([q.quantizer(name).logits for name in names], RATE)
    found: dict[str, Any] = {}
    for number, (x, y) in zip(numbers, cycle(data), strict=False):
        assert y is not None  # as was checked
        optimizer.zero_grad()
        bound = objective(x, y)
        check_finite(bound.value, "search", number)
        objective.backward(bound.value, bound, settling=False)
        optimizer.step()
        if number >= last // 2:
            for name in names:
                found[name] = found.get(name, 0) + _energies(q, name) / (last - last // 2)
    return found


@torch.no_grad()
def _energies(q: Program, name: str) -> np.ndarray:
    """Return what less probable each rung is than the widest in nats, the sum over gates, `[B]`."""
    log_probs = q.quantizer(name).widths().log_probs.double()
    energies = (log_probs[..., -1:] - log_probs).reshape(-1, log_probs.shape[-1]).sum(0)
    return np.asarray(energies.cpu().numpy())
