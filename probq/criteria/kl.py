"""`kl` measures how far outputs move from those of the float network, without labels."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import Any

from probq.criteria.measuring.measure import mean_divergence, measured, single_choices, single_energy
from probq.criteria.measuring.ready import perturbed_network, tell_negative
from probq.network.quantized.quantized import Quantized
from probq.priors.energies.energy import Energy


def kl(
    q: Quantized,
    batches: Iterable[Any],
    *,
    examples: int = 512,
    of: str = "both",
    resume: str | PathLike[str] | None = None,
    processes: int = 1,
    progress: bool = True,
) -> Energy:
    """`E_i(b) = KL(p_float || p_i,b) - KL(p_float || p_widest)`, the mean over examples in nats; `p` is the likelihood.

    It is `probq.criteria.loss` with the float network's outputs in place of labels. Without a likelihood, outputs are
    logits of classes on the last axis; those of a sequence, `[batch, length, classes]`, count as the sum over it.

    Args:
        q: from `quantize`.
        batches: iterable of inputs, or of `(input, target)`, whose targets are not looked at.
        examples: as in `loss`.
        of: as in `loss`.
        resume: as in `loss`.
        processes: as in `loss`.
        progress: as in `loss`.

    Warns:
        UserWarning: if energies are negative.

    Raises:
        ProbqError: if there is no data, or no such quantizer has a choice.

    Source: Y. Cai et al., 2020, "ZeroQ: A Novel Zero Shot Quantization Framework" (KL sensitivity).
    """
    network = perturbed_network(q, batches, examples, "kl", labels=False, of=of)
    found = measured(network, single_choices(network), mean_divergence, resume, progress, processes)
    return tell_negative(single_energy(network, found, "kl"))
