"""Statistics of batch normalisation are estimated anew once widths are decided."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch

from probq.decisions.widths import fixed_by_decision
from probq.network.program.decided_codes import decided_output
from probq.network.program.program import Program
from probq.network.program.substitution import running
from probq.network.quantized.quantized import Quantized
from probq.network.tracing.arguments import arguments
from probq.network.tracing.module_kinds import NORMS
from probq.training.ptq.decided import decided_inputs, unrounded
from probq.utils.batches import Batches

NORM_BATCHES = 20


def has_norms(q: Program) -> bool:
    """Return whether the network has batch normalisation whose statistics training estimates."""
    return bool(_norms(q))


def _norms(q: Program) -> dict[str, Any]:
    named = q.net.named_modules()
    return {name: m for name, m in named if isinstance(m, NORMS) and m.track_running_stats and name not in q.held}


@torch.no_grad()
def estimate_norms(q: Program, data: Iterable[Any]) -> None:
    """Re-estimate the statistics of batch normalisation at fixed widths, as averages over 20 batches.

    Source: X. Sun et al., 2019, "Hybrid 8-bit Floating Point (HFP8) Training and Inference for Deep Neural Networks"
    (batch-norm re-tuning after quantization).
    """
    norms = list(_norms(q).values())
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


def norms(q: Quantized, batches: Iterable[Any], *, examples: int = 512) -> Quantized:
    """Return the decided network with batch normalisation estimated anew at its widths, and folded again:

        mean <- average of E[W~ x~],    variance <- average of Var[W~ x~],

    over the first 20 batches. Codes are those nearest to the float weights with the new gain, and biases those of the
    float network, so what rounds better or corrects, such as `gpfq` and `bias`, comes afterwards. Normalisation whose
    statistics are held stays as it is.

    Args:
        q: a decided network, from `Quantized.at`.
        batches: iterable of inputs, or of `(input, target)`, whose targets are not looked at; each of several examples.
        examples: greatest number of examples, kept in memory.

    Returns:
        Another decided network of the same widths.

    Raises:
        ProbqError: if the network is not decided, or there is no data.

    Source: X. Sun et al., 2019, "Hybrid 8-bit Floating Point (HFP8) Training and Inference for Deep Neural Networks"
    (batch-norm re-tuning after quantization).

    Example:
        >>> import torch, probq
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).eval()
        >>> q = probq.quantize(net, torch.rand(8, 2), probq.uniform(4, 4))
        >>> moved = probq.ptq.norms(q.at(q.mode()), [torch.rand(64, 2)])
        >>> bool((moved.net[1].running_var < 1).all()), q.net[1].running_var.tolist()
        (True, [1.0, 1.0])
    """
    inputs = decided_inputs(q, batches, examples, "norms")
    result = unrounded(q)
    for name in _norms(q):
        result.originals.keep(result.net, f"{name}.running_mean")
        result.originals.keep(result.net, f"{name}.running_var")
    result.folded = False
    result.eval()  # the statistics of what ships: without dropout
    estimate_norms(result, [(x, None) for x in inputs])
    result.folded = q.folded
    result.train(q.training)
    return result


def estimate_before_use(q: Program, data: Batches) -> None:
    """Re-estimate normalisation that follows the batches at decided widths; its running averages lag behind."""
    if fixed_by_decision(q) and not q.folded and has_norms(q):
        q.eval()  # the statistics of what ships: without dropout
        estimate_norms(q, data)
        q.train()
