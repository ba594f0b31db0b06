"""`mpqco` takes the square of what a rounding error changes in each log-probability, to first order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from probq.criteria.measuring.energies import energy_of
from probq.criteria.measuring.example_gradients import ExampleGradients, example_gradients
from probq.criteria.measuring.measure import measure_pruned
from probq.criteria.measuring.ready import checked_examples, with_scales
from probq.criteria.measuring.rounding_errors import input_errors, members, weight_errors
from probq.network.program.program import Program
from probq.network.quantized.quantized import Quantized
from probq.priors.energies.energy import Energy
from probq.utils.arguments import check_seed
from probq.utils.random_stream import Stream


def mpqco(
    q: Quantized,
    batches: Iterable[Any],
    *,
    examples: int = 512,
    of: str = "both",
    seed: int = 0,
    progress: bool = True,
) -> Energy:
    """`E_i(b) = D_i(b) - D_i(b_max)` with `D_i(b) = 1/2 mean_n (d_i(b) . grad_i log p(y_n | x_n))^2`, in nats.

    `d_i(b)` is the rounding error `Q_b(w_i) - w_i` of a weight, or of all that enters a layer for example `n`. The mean
    of products of gradients, the Fisher information, takes the place of the Hessian, as it is at a well-trained
    optimum: the energy is the loss for one example to second order, with all dependences within a quantizer. Tied
    quantizers are rounded together. A rung of 0 bits is measured, as in `loss` or without labels in `kl`: no expansion
    holds where the error is the number itself.

    Without labels, each example's target is drawn from the float network's own law, which makes it the Fisher
    information under the model; its most probable class would not, as a network that is sure of it has no gradient
    there. The same holds of labels that a network knows by heart: leave them out. Any likelihood will do whose law can
    draw. Batch normalisation is as in `hawq`; gradients are taken one example after the other.

    Args:
        q: from `quantize`.
        batches: iterable of `(input, target)`, or of inputs.
        examples: as in `loss`.
        of: as in `loss`.
        seed: decides targets that are drawn.
        progress: show a progress bar.

    Raises:
        ProbqError: if there is no data, no such quantizer has a choice, the network does not take one example, or
            targets are neither given nor can be drawn.

    Source: W. Chen, P. Wang, J. Cheng, 2021, "Towards Mixed-Precision Quantization of Neural Networks via Constrained
    Optimization".

    Example:
        >>> import torch, probq
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x = torch.rand(32, 4)
        >>> q = probq.quantize(net, x, probq.Plan(weight=probq.codebooks.ladder(2, 4, 8)))
        >>> mpqco(q, [x], progress=False)
        Energy(mpqco, additive: 3 quantizers, 13 rungs)
    """
    check_seed(seed)
    data = checked_examples(q, batches, examples, "mpqco", labels=False, of=of)
    sites = members(q, of)
    names = [name for own in sites.values() for name in own]
    rows: dict[str, list[np.ndarray]] = {site: [] for site in sites}
    with Stream(seed).training():
        own = with_scales(q, data).requires_grad_(False)
        with own.evaluating():
            errors = {name: weight_errors(own, name) for name in names if name in own.weights}
        for one in example_gradients(own, data, names, progress):
            for site, tied in sites.items():
                along = [_along(own, name, one, errors.get(name)) for name in tied]
                rows[site].append(np.sum(along, 0) ** 2)
    means = {site: np.mean(row, 0) / 2 for site, row in rows.items()}
    return energy_of(q, measure_pruned(own, data, means), "mpqco")


def _along(q: Program, name: str, one: ExampleGradients, errors: Any) -> np.ndarray:
    """Return what each rung's error changes in an example's log-probability, to first order, `[B]`."""
    total = np.zeros(len(q.quantizer(name).ladder))
    for value, gradient in zip(one.values[name], one.gradients[name], strict=True):
        changed = input_errors(q, name, value) if errors is None else errors
        total += (changed.flatten(1) @ gradient.flatten()).double().cpu().numpy()
    return total
