"""`mixquant` compares how much of each weight and input rounding takes away, whether it matters or not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from probq.criteria.measuring.energies import energy_of
from probq.criteria.measuring.ready import checked_examples, with_scales
from probq.criteria.measuring.rounding_errors import SquaredErrors, members, squared_errors
from probq.network.quantized.quantized import Quantized
from probq.priors.energies.energy import Energy
from probq.utils.errors import ProbqError


def mixquant(
    q: Quantized,
    batches: Iterable[Any],
    *,
    examples: int = 512,
    of: str = "both",
    progress: bool = True,
) -> Energy:
    """`E_i(b) = R_i(b) - R_i(b_max)` with the relative round-off error `R_i(b) = ||Q_b(w_i) - w_i||^2 / ||w_i||^2`.

    For inputs, both sums run over all examples, in the float network. It takes one pass over them, and none to speak of
    for weights. The energy is no loss and has no unit: a layer whose output hardly matters counts as much as any other.
    Compare with `loss` before you trust it. A folded batch normalisation is part of the weight. Tied quantizers have
    the sum of theirs.

    The source lets round-off errors decide widths; the squares, relative to the weight's own, are chosen here.

    Args:
        q: from `quantize`.
        batches: iterable of inputs, or of `(input, target)`, whose targets are not looked at.
        examples: as in `loss`.
        of: as in `loss`.
        progress: show a progress bar.

    Raises:
        ProbqError: if there is no data, no such quantizer has a choice, or zeros alone are rounded to something else.

    Source: E. Kloberdanz, W. Le, 2023, "MixQuant: Mixed Precision Quantization with a Bit-width Optimization Search".

    Example:
        >>> import torch, probq
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> x = torch.rand(32, 4)
        >>> q = probq.quantize(net, x, probq.Plan(weight=probq.codebooks.ladder(2, 4, 8)))
        >>> mixquant(q, [x], progress=False)
        Energy(mixquant, additive: 3 quantizers, 13 rungs)
    """
    data = checked_examples(q, batches, examples, "mixquant", labels=False, of=of)
    sites = members(q, of)
    names = [name for own in sites.values() for name in own]
    found = squared_errors(with_scales(q, data), data, names, progress)
    rows = {site: np.sum([_relative(name, found[name]) for name in own], 0) for site, own in sites.items()}
    return energy_of(q, rows, "mixquant", "relative squared error")


def _relative(name: str, found: SquaredErrors) -> np.ndarray:
    if found.norm > 0:
        return found.errors / found.norm
    if found.errors.any():
        raise ProbqError(
            f"all numbers of {name} are 0 and rounded to others, so that no error is relative to them; give other "
            "examples, or a ladder with the level 0"
        )
    return np.zeros(len(found.errors))
