"""The log-probability of each example by itself has gradients with respect to weights and inputs of layers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from probq.criteria.measuring.float_network import log_probs, opened
from probq.criteria.measuring.perturbed import Batch
from probq.network.program.program import Program
from probq.utils.structures.tensors import arguments, rows_of, some_rows


@dataclass(frozen=True)
class ExampleGradients:
    """These are the gradients of one example in the float network.

    Attributes:
        values: by quantizer, the weight, or the layer's input at each call.
        gradients: of the log-probability with respect to each of them.
    """

    values: dict[str, list[Tensor]]
    gradients: dict[str, list[Tensor]]


def example_gradients(
    q: Program, data: list[Batch], names: Collection[str], progress: bool
) -> Iterator[ExampleGradients]:
    """Yield the gradients of one example after the other; without targets, of a target drawn from the network's law.

    Args:
        q: the network, with scales.
        data: examples, with targets or without.
        names: the quantizers whose weights or inputs are meant.
        progress: show a progress bar.

    Raises:
        ProbqError: if the network or the likelihood does not take one example.
    """
    rows = sum(rows_of(x) for x, _ in data)
    with q.evaluating(), tqdm(total=rows, disable=not progress, unit="example", dynamic_ncols=True) as bar:
        for x, y in _one_by_one(data):
            run = opened(q, x, names)
            changes = [change for name in names for change in run.changes[name]]
            log_prob = log_probs(q, run.output, y).sum()
            grads = iter(torch.autograd.grad(log_prob, changes, materialize_grads=True))
            yield ExampleGradients(run.values, {name: [next(grads) for _ in run.changes[name]] for name in names})
            bar.update()


def _one_by_one(data: list[Batch]) -> Iterator[Batch]:
    for x, y in data:
        for n in range(rows_of(x)):
            one: Any = some_rows(arguments(x), n, n + 1)
            yield (one if isinstance(x, tuple) else one[0]), None if y is None else y[n : n + 1]
