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
from probq.network.tracing.arguments import arguments
from probq.network.tracing.module_kinds import NORMS
from probq.utils.batches import Batches

NORM_BATCHES = 20


def has_norms(q: Program) -> bool:
    """Return whether the network has batch normalisation whose statistics training estimates."""
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


def estimate_before_use(q: Program, data: Batches) -> None:
    """Re-estimate normalisation that follows the batches at decided widths; its running averages lag behind."""
    if fixed_by_decision(q) and not q.folded and has_norms(q):
        q.eval()  # the statistics of what ships: without dropout
        estimate_norms(q, data)
        q.train()
