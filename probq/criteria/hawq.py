"""`hawq` multiplies squared rounding errors by the mean curvature of the loss in each weight and input."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from probq.criteria.measuring.energies import energy_of
from probq.criteria.measuring.hessian_traces import hessian_traces
from probq.criteria.measuring.measure import measure_pruned
from probq.criteria.measuring.ready import checked_examples, with_scales
from probq.criteria.measuring.rounding_errors import members, squared_errors
from probq.network.quantized.quantized import Quantized
from probq.priors.energies.energy import Energy
from probq.utils.arguments import check_number, check_seed
from probq.utils.random_stream import Stream


def hawq(
    q: Quantized,
    batches: Iterable[Any],
    *,
    examples: int = 512,
    probes: int = 32,
    of: str = "both",
    seed: int = 0,
    progress: bool = True,
) -> Energy:
    """`E_i(b) = D_i(b) - D_i(b_max)` with `D_i(b) = 1/2 tr(H_i) / n_i ||Q_b(w_i) - w_i||^2`, in nats for one example.

    `H_i` is the Hessian of the float network's loss in the `n_i` numbers of a weight, or of all that enter a layer for
    one example; traces and squared errors of inputs are means over examples. It is the loss to second order where all
    numbers of a quantizer have the same curvature, are independent, and the float network is at its minimum. The source
    has the same product without the factor 1/2.

    Traces are estimated with random signs: each of `probes` takes a gradient of gradients for all weights, and one for
    all inputs of a batch, so that small traces err by what the large ones have beside them. Batch normalisation is
    folded and stays as it is; a folded weight is what is rounded, and curvature and error are those of it. Weights that
    are tied have the sum of theirs. A rung of 0 bits is measured, as in `loss`.

    Args:
        q: from `quantize`.
        batches: as in `loss`.
        examples: as in `loss`.
        probes: number of random vectors; the error of a trace falls with its root.
        of: as in `loss`.
        seed: decides the random vectors.
        progress: show progress bars.

    Warns:
        UserWarning: if a trace is negative, as at no minimum: more bits then cost more.

    Raises:
        ProbqError: if there are no labels or no data, no such quantizer has a choice, or torch knows no second
            derivative of what the network does.

    Source: Z. Dong et al., 2020, "HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks".

    Example:
        >>> import torch, probq
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x, y = torch.rand(32, 4), torch.arange(32) % 3
        >>> q = probq.quantize(net, x, probq.Plan(weight=probq.codebooks.ladder(2, 4, 8)))
        >>> hawq(q, [(x, y)], probes=4, progress=False)
        Energy(hawq, additive: 3 quantizers, 13 rungs)
    """
    check_number("probes", probes, 1)
    check_seed(seed)
    data = checked_examples(q, batches, examples, "hawq", labels=True, of=of)
    sites = members(q, of)
    names = [name for own in sites.values() for name in own]
    with Stream(seed).training():
        own = with_scales(q, data).requires_grad_(False)
        errors = squared_errors(own, data, names, progress)
        traces = hessian_traces(own, data, names, probes, progress)
    _tell_negative(traces)
    costs = {name: traces[name] / errors[name].count * errors[name].errors / 2 for name in names}
    rows = {site: np.sum([costs[name] for name in own], 0) for site, own in sites.items()}
    return energy_of(q, measure_pruned(own, data, rows), "hawq")


def _tell_negative(traces: Mapping[str, float]) -> None:
    negative = [name for name, trace in traces.items() if trace < 0]
    if negative:
        least = min(negative, key=lambda name: traces[name])
        warnings.warn(
            f"{len(negative)} of {len(traces)} traces of hawq are negative, the least {traces[least]:.3g} of {least}: "
            "there the loss is at no minimum, and narrower widths seem better; more examples or probes make that "
            "rarer, and probq.criteria.mpqco has no negative curvature",
            UserWarning,
            stacklevel=3,
        )
