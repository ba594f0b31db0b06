"""`limpq` learns a step size for each width; the larger it stays, the more the layer needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from probq.codebooks.rounding.nearest import all_levels
from probq.criteria.measuring.energies import energy_of
from probq.criteria.measuring.perturbed import Batch
from probq.criteria.measuring.quantizers_of import quantizers_of
from probq.criteria.measuring.ready import checked_examples
from probq.criteria.measuring.still_copy import check_finite, fix_rungs, still_copy
from probq.network.distributions.observation import Observation
from probq.network.program.decided_codes import decided_output
from probq.network.program.program import Program
from probq.network.program.substitution import running
from probq.network.quantized.quantized import Quantized
from probq.priors.energies.energy import Energy
from probq.utils.arguments import check_number, check_seed
from probq.utils.errors import ProbqError
from probq.utils.random_stream import Stream
from probq.utils.structures.tensors import arguments

START = 0.1  # a step of b bits starts at START / b in every layer, so that what differs was learned
RATE = 0.05  # of Adam, for log2 of the steps
FINE = 4096  # multipliers of a scale: next to continuous, where powers of two would hide what is learned


def limpq(
    q: Quantized,
    batches: Iterable[Any],
    *,
    examples: int = 512,
    steps: int = 200,
    alpha: float = 1.0,
    of: str = "both",
    seed: int = 0,
    progress: bool = True,
) -> Energy:
    """`E_i(b) = s_i(b) - s_i(b_max)`, times `alpha` for weights, where training has made `s_i(b)` the step of `b` bits.

    The steps of all widths are trained together, by the gradient of learned step sizes. Each training step takes one
    batch through the network once for every rung: each quantizer goes through its rungs in a random order, so that
    each rung learns in the company of random others. The float weights stay still, and every step starts at `0.1 / b`.
    A weight with a step for each channel has their mean, tied quantizers the sum of theirs.

    The energy has the units of weights and of inputs: it is no loss. The step size follows the size of the numbers that
    are rounded, whether they matter or not; compare with `loss` before you trust it.

    Args:
        q: from `quantize`.
        batches: as in `loss`; every training step takes the next one of those that hold the first `examples`.
        examples: greatest number of examples, kept in memory.
        steps: number of training steps.
        alpha: how much weights count compared to inputs, above 0.
        of: "weights" or "inputs" learns the steps of these alone; others stay on their widest rung, with energy 0.
        seed: decides the random orders.
        progress: show a progress bar.

    Raises:
        ProbqError: if there are no labels or no data, no such quantizer has a choice, or a rung has no step, such as
            that of 0 bits.

    Source: C. Tang et al., 2022, "Mixed-Precision Neural Network Quantization via Learned Layer-wise Importance";
    S. K. Esser et al., 2020, "Learned Step Size Quantization" (gradient).

    Example:
        >>> import torch, probq
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x, y = torch.rand(32, 4), torch.arange(32) % 3
        >>> q = probq.quantize(net, x, probq.Plan(weight=probq.codebooks.ladder(2, 4, 8)))
        >>> limpq(q, [(x, y)], steps=2, progress=False)
        Energy(limpq, additive: 3 quantizers, 13 rungs)
    """
    check_number("steps", steps, 1)
    check_seed(seed)
    if not 0 < alpha < math.inf:
        raise ProbqError(f"alpha is a positive number, not {alpha!r:.80}")
    data = checked_examples(q, batches, examples, "limpq", labels=True, of=of)
    sites = quantizers_of(q, of)
    gaps = {name: _gaps(q, name) for name, _ in q.named_quantizers() if q.sites.get(name, name) in sites}
    with Stream(seed).training():
        own = still_copy(q, data)
        _train(own, data, gaps, tqdm(range(steps), disable=not progress, unit="step", desc="limpq", dynamic_ncols=True))
    rows: dict[str, Any] = {}
    for name, gap in gaps.items():
        site, factor = own.sites.get(name, name), alpha if name in own.weight_names else 1.0
        rows[site] = rows.get(site, 0) + factor * _energies(own, name, gap)
    return energy_of(q, rows, "limpq", "step")


@torch.no_grad()
def _gaps(q: Program, name: str) -> Tensor:
    """Return the distance of neighbouring levels of each rung in units of its scale, the least one, `[B]`.

    Raises:
        ProbqError: if a rung has one level, or vectors.
    """
    quantizer = q.quantizer(name)
    if quantizer.ladder.has_vectors:
        raise ProbqError(
            f"criteria.limpq learns a step for each width, and {name} has vectors, which have none; give it single "
            "levels, or take another criterion, such as probq.criteria.loss"
        )
    every = [all_levels(quantizer.levels(k)) for k in range(len(quantizer.ladder))]
    for bits, levels in zip(quantizer.ladder.bits, every, strict=True):
        if len(levels) < 2:
            raise ProbqError(
                f"criteria.limpq learns a step for each width, and {name} has one level at {bits} bits; give a plan "
                "with ladders that start at 1 bit"
            )
    return torch.stack([levels.diff().min() for levels in every]).to(quantizer.log2_scale)


def _train(q: Program, data: list[Batch], gaps: Mapping[str, Tensor], numbers: Iterable[int]) -> None:
    """Train the step sizes of the quantizers with these gaps."""
    scales = []
    for name, gap in gaps.items():
        quantizer = q.quantizer(name)
        quantizer.multipliers = FINE
        start = (START / (torch.tensor(quantizer.ladder.bits).to(gap) * gap)).log2()
        scale = quantizer.log2_scale
        scale.copy_(start.reshape(-1, *[1] * (scale.dim() - 1)).expand_as(scale))
        scales.append(scale.requires_grad_(True))
    optimizer = torch.optim.Adam(scales, RATE)
    sites = [name for name in gaps if name not in q.sites]
    for number, (x, y) in zip(numbers, cycle(data), strict=False):
        assert y is not None  # as was checked
        optimizer.zero_grad()
        for widths in _orders(q, sites):
            fix_rungs(q, widths)
            with running(x):
                output = decided_output(q, arguments(x))
            loss = -Observation(q.law(output, y)).log_prob(y).mean()
            check_finite(loss, "limpq", number)
            loss.backward()
        optimizer.step()


def _orders(q: Program, names: list[str]) -> Iterator[dict[str, int]]:
    """Yield widths such that each quantizer passes all its rungs in a random order, shorter ladders several times."""
    ladders = [q.quantizer(name).ladder.bits for name in names]
    orders = [torch.randperm(len(bits)).tolist() for bits in ladders]
    for k in range(max(map(len, ladders))):
        rungs = [bits[order[k % len(order)]] for bits, order in zip(ladders, orders, strict=True)]
        yield dict(zip(names, rungs, strict=True))


def _energies(q: Program, name: str, gaps: Tensor) -> np.ndarray:
    """Return the step of each rung, the mean over channels, less that of the widest."""
    scales = q.quantizer(name).log2_scale.detach().exp2()
    steps = (scales.reshape(len(gaps), -1).mean(1) * gaps).double().cpu().numpy()
    return np.asarray(steps - steps[-1])
