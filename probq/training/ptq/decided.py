"""Functions of decided networks check here what they take, and read data without labels."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn

from probq.decisions.widths import fixed_by_decision
from probq.network.program.program import check_posterior
from probq.network.quantized.quantized import Quantized
from probq.utils.arguments import check_number
from probq.utils.batches import first_examples
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
    return [x for x, _ in first_examples(batches, examples, q.device, function)]


def float_reference(q: Quantized, reference: Quantized | None, function: str) -> Quantized:
    """Return the float network that is meant: that of a reference, or by default of the network itself.

    Raises:
        ProbqError: if the reference is no decided network of the same layers.
    """
    if reference is None:
        return float_network(q)
    if isinstance(reference, nn.Module) and not isinstance(reference, Quantized):
        raise ProbqError(
            f"{function}(reference=...) takes a decided network, not {type(reference).__name__}: leave it out, since a "
            "decided network knows its float weights, or give the one from before other functions"
        )
    check_decided(reference, f"{function}(reference=...)")
    if [(m.name, m.shape) for m in reference.layers] != [(m.name, m.shape) for m in q.layers]:
        raise ProbqError(f"{function}(reference=...) takes a decided network with the layers of the one to be rounded")
    return float_network(reference)


def float_network(q: Quantized) -> Quantized:
    """Return a copy of a decided network with the weights, biases and statistics of before any rounding."""
    result = copy.deepcopy(q)
    result.originals.put_back(result.net)
    return result


def unrounded(q: Quantized) -> Quantized:
    """Return a copy of a decided network with the weights and biases of before any rounding, each at its nearest code.

    Statistics of normalisation, which `probq.ptq.norms` estimates, stay what they are.
    """
    result = copy.deepcopy(q)
    result.originals.put_back(result.net, but=dict(result.net.named_buffers()))
    return result
