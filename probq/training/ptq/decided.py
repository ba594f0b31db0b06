"""Functions of decided networks check here what they take, and read data without labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from probq.decisions.widths import fixed_by_decision
from probq.network.program.program import check_posterior
from probq.network.quantized.quantized import Quantized
from probq.network.tracing.arguments import arguments
from probq.utils.arguments import check_number
from probq.utils.errors import ProbqError


def check_decided(q: Quantized, function: str) -> Quantized:
    """Return the network, if its widths are decided.

    Raises:
        ProbqError: with what to call first.
    """
    check_posterior(q, function)
    if not fixed_by_decision(q):
        raise ProbqError(f"{function} takes a decided network: q.at(probq.allocate(...)), or q.at(q.mode(budget))")
    return q


def decided_inputs(q: Quantized, batches: Iterable[Any], examples: int, function: str) -> list[Any]:
    """Return the first inputs of the user's data, for a decided network.

    Raises:
        ProbqError: if the network is not decided, or there is no data.
    """
    check_decided(q, function)
    check_number("examples", examples, 1)
    kept: list[Any] = []
    left = examples
    for batch in batches:
        x = batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch
        inputs = tuple(a[:left].to(q.device) if isinstance(a, Tensor) else a for a in arguments(x))
        kept.append(inputs if isinstance(x, tuple) else inputs[0])
        left -= len(next(a for a in inputs if isinstance(a, Tensor)))
        if left <= 0:
            break
    if not kept:
        raise ProbqError(f"{function} needs data: batches of inputs, or of (input, target)")
    return kept
