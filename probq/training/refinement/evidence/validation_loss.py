"""The measured loss of decided networks: what a refinement of widths is accepted by."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from probq.decisions.widths import fix_widths
from probq.evaluation.diagnostics.held_out import scores, validation_errors
from probq.network.program.decided_codes import decided_output
from probq.network.quantized.quantized import Quantized
from probq.training.ptq.batch_norm import NORM_BATCHES, estimate_norms, has_norms
from probq.utils.batches import Batches
from probq.utils.structures.tensors import arguments, some_rows


class ValidationLoss:
    """Mean negative log-likelihood of one example in nats, as a function of the widths; works on a copy of a network.

    Every network is measured on the same examples, and its batch normalisation is estimated from the same batches, so
    the same widths always give the same loss.

    Args:
        q: the network, with a likelihood.
        validation: held-out batches; kept in memory.
        batches: training batches; where the network has batch normalisation, the first 20 are kept in memory and
            re-estimate its statistics at each choice of widths. None leaves the statistics as they are.
        examples: greatest number of examples to measure on; by default all.
    """

    def __init__(self, q: Quantized, validation: Batches, batches: Batches | None, examples: int | None) -> None:
        self.q = copy.deepcopy(q)
        self.validation = list(_first(validation, examples))
        self.batches = list(islice(batches, NORM_BATCHES)) if batches is not None and has_norms(q) else []

    def __call__(self, widths: Mapping[str, Any]) -> float:
        """The loss at given widths, every code at its mode; infinite where it is not a number."""
        self.at(widths)
        with self.q.evaluating(), torch.no_grad(), validation_errors():
            loss = scores(self.q, self.validation, lambda x: decided_output(self.q, arguments(x)))["loss"]
        return loss if loss == loss else float("inf")

    def at(self, widths: Mapping[str, Any]) -> None:
        """Fix the copy's widths, with normalisation re-estimated there."""
        fix_widths(self.q, widths)
        if self.batches:
            self.q.folded = False
            self.q.eval()
            estimate_norms(self.q, self.batches)

    @torch.no_grad()
    def settle(self, q: Quantized, widths: Mapping[str, Any]) -> None:
        """Give a network the statistics of normalisation that the copy has at these widths."""
        if self.batches:
            self.at(widths)
            for name, buffer in self.q.net.named_buffers():
                q.net.get_buffer(name).copy_(buffer)


def _first(batches: Batches, examples: int | None) -> Iterable[tuple[Any, Tensor]]:
    left = examples
    for x, y in batches:
        if left is None:
            yield x, y
            continue
        several = some_rows(arguments(x), 0, left)
        yield (several if isinstance(x, tuple) else several[0]), y[:left]
        left -= len(y)
        if left <= 0:
            return
