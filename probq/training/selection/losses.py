"""Losses of several networks on each example are the targets of a selector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probq.decisions.assignment import Assignment
from probq.likelihoods import Likelihood, for_target, is_usual
from probq.network.quantized.quantized import Quantized
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError


@torch.no_grad()
def example_losses(
    networks: Sequence[Quantized], assignments: Sequence[Assignment], batches: Batches
) -> tuple[list[Tensor], np.ndarray]:
    """Return the inputs of all batches, and each network's loss on each example in nats, `[examples, networks]`.

    The first network's likelihood is that of all, because noise that each has learned for itself would make the better
    one look worse on hard examples.

    Raises:
        ProbqError: a network takes or returns several tensors, or its law does not give each example a loss.
    """
    inputs, rows = [], []
    law = networks[0].likelihood
    for x, y in batches:
        if not isinstance(x, Tensor):
            raise ProbqError("select takes batches of (input, target) with one tensor as input")
        inputs.append(x)
        rows.append(torch.stack([_loss(q, a, law, x, y) for q, a in zip(networks, assignments, strict=True)], 1))
    return inputs, torch.cat(rows).double().cpu().numpy()


def _loss(q: Quantized, assignment: Assignment, given: Likelihood | None, x: Tensor, y: Any) -> Tensor:
    output = q.outputs([assignment], x)[0]
    if not isinstance(output, Tensor):
        raise ProbqError("select takes networks that return one tensor")
    likelihood = for_target(y, output) if given is None else given
    law = likelihood(output)
    shape = law.batch_shape + law.event_shape
    found = law.log_prob(y.reshape(shape) if is_usual(likelihood) and y.numel() == shape.numel() else y)
    if not found.dim() or len(found) != len(x):
        raise ProbqError("the networks' likelihood gives no loss for each example; fit them with one that does")
    return -found.reshape(len(x), -1).sum(1)
