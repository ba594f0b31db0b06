"""`expected_error` is the squared error that the posterior of the codes expects, weighed with curvature."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probq.criteria.measuring.energies import energy_of
from probq.criteria.measuring.example_gradients import example_gradients
from probq.criteria.measuring.float_network import float_weight
from probq.criteria.measuring.measure import measure_pruned
from probq.criteria.measuring.ready import checked_examples, with_scales
from probq.criteria.measuring.rounding_errors import code_law, input_errors, members, squares, weight_errors
from probq.network.program.program import Program
from probq.network.quantized.quantized import Quantized
from probq.priors.energies.energy import Energy
from probq.utils.arguments import check_seed
from probq.utils.random_stream import Stream


def expected_error(
    q: Quantized,
    batches: Iterable[Any],
    *,
    examples: int = 512,
    of: str = "both",
    seed: int = 0,
    progress: bool = True,
) -> Energy:
    """`E_i(b) = D_i(b) - D_i(b_max)` with `D_i(b) = 1/2 sum_j F_j E[(Q_b(w_ij) - w_ij)^2]`, in nats for one example.

    The expectation is that of the posterior of the codes, exactly: with `Plan(codes=2)` the variance of both levels
    counts beside the distance of their mean from the weight. `F_j = mean_n (d log p(y_n | x_n) / d w_ij)^2` is the
    diagonal of the Fisher information. Inputs are rounded without chance, and their squares are multiplied example by
    example. It is the loss to second order where rounding errors are independent; `mpqco` has their dependences within
    a quantizer instead, at the most probable codes.

    Targets, gradients, rungs of 0 bits and batch normalisation are as in `mpqco`. Tied quantizers have the sum of
    theirs.

    Args:
        q: from `quantize`.
        batches: iterable of `(input, target)`, or of inputs.
        examples: as in `loss`.
        of: as in `loss`.
        seed: decides targets that are drawn.
        progress: show a progress bar.

    Raises:
        ProbqError: as `mpqco`.

    Source: C. Louizos et al., 2019, "Relaxed Quantization for Discretized Neural Networks" (the law of the codes);
    Y. LeCun, J. Denker, S. Solla, 1990, "Optimal Brain Damage" (diagonal curvature).

    Example:
        >>> import torch, probq
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x = torch.rand(32, 4)
        >>> q = probq.quantize(net, x, probq.Plan(weight=probq.codebooks.ladder(2, 4, 8)))
        >>> expected_error(q, [x], progress=False)
        Energy(expected_error, additive: 3 quantizers, 13 rungs)
    """
    check_seed(seed)
    data = checked_examples(q, batches, examples, "expected_error", labels=False, of=of)
    sites = members(q, of)
    names = [name for own in sites.values() for name in own]
    with Stream(seed).training():
        ready = with_scales(q, data).requires_grad_(False)
        costs = _costs(ready, data, names, progress)
    rows = {site: np.sum([costs[name] for name in own], 0) for site, own in sites.items()}
    return energy_of(q, measure_pruned(ready, data, rows), "expected_error")


def _costs(q: Program, data: list[Any], names: list[str], progress: bool) -> dict[str, np.ndarray]:
    """Return half the mean of squared error times squared gradient on each rung, `[B]`, by quantizer."""
    information: dict[str, Any] = dict.fromkeys(names, 0.0)  # of weights `[*shape]`, of inputs `[B]` with the error
    rows = 0
    for one in example_gradients(q, data, names, progress):
        rows += 1
        for name in names:
            for value, gradient in zip(one.values[name], one.gradients[name], strict=True):
                weight = name in q.weights
                information[name] += gradient**2 if weight else squares(input_errors(q, name, value) * gradient)
    with q.evaluating():
        for name in names:
            if name in q.weights:
                each = (expected_squares(q, name) * information[name]).flatten(1)
                information[name] = each.double().sum(1).cpu().numpy()
    return {name: total / rows / 2 for name, total in information.items()}


@torch.no_grad()
def expected_squares(q: Program, name: str) -> Tensor:
    """Return `E[(Q(w) - w)^2]` of every weight on every rung, `[B, *shape]`, within `q.evaluating()`."""
    if q.rounding:
        return weight_errors(q, name) ** 2
    weight, found = float_weight(q, name), []
    for k in range(len(q.weights[name].ladder)):
        law, rung = code_law(q, name, k)
        found.append(rung.scale**2 * law.variance + (rung.scale * law.mean - weight) ** 2)
    return torch.stack(found)
