"""Draws from the posterior say about data the log-likelihood of every observation, and replicated targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probq.decisions.assignment import Assignment
from probq.decisions.within_budget import sample
from probq.network.distributions.observation import Observation
from probq.network.quantized.quantized import Quantized
from probq.utils.arguments import is_count
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError
from probq.utils.random_stream import Stream
from probq.utils.structures.targets import Targets

MOST_CODES = 2**24  # codes of drawn networks held at once


class Predictive(NamedTuple):
    """This holds what draws of networks say about data.

    Attributes:
        log_likelihood: `log p(y_i | network)` in nats, `[draws, observations]`.
        replicated: targets drawn from the likelihood, `[draws, observations, ...]`, or None.
    """

    log_likelihood: np.ndarray
    replicated: np.ndarray | None


def in_memory(q: Quantized, batches: Any) -> list[tuple[Any, Tensor]]:
    """Return all batches on the network's device, in one order however often they are read."""
    return list(Batches(batches, q.device))


def draw_outputs(q: Quantized, draws: int, seed: int, budget: Any = None) -> Iterator[list[Assignment]]:
    """Draw widths and codes in parts small enough to hold; without a budget from the whole posterior."""
    if not is_count(draws, 1):
        raise ProbqError(f"draws is a number of draws, 1 or more, not {draws!r}")
    generator = np.random.default_rng(seed)
    rows = max(1, MOST_CODES // sum(int(np.prod(z.shape)) for z in q.weights.values()))
    for first in range(0, draws, rows):
        yield sample(q, min(rows, draws - first), budget, int(generator.integers(2**31)))


@torch.no_grad()
def predictive(
    q: Quantized, assignments: Sequence[Assignment], data: Sequence[tuple[Any, Any]], seed: int | None = None
) -> Predictive:
    """Return the log-likelihood of data under drawn networks.

    Args:
        q: the network.
        assignments: the draws.
        data: from `in_memory`.
        seed: the seed of replicated targets; None for none.

    Raises:
        ProbqError: if the targets do not fit the likelihood.
    """
    log_likelihood, replicated = [], []
    with Stream(seed).drawing():
        for x, y in data:
            laws = [q.law(output, y) for output in q.outputs(list(assignments), x)]
            try:
                log_likelihood.append(torch.stack([Observation(law).log_prob(y).double() for law in laws]))
            except ValueError as error:  # torch checks the targets
                raise ProbqError(f"the data does not fit the likelihood: {error!s:.300}") from error
            if seed is not None and isinstance(y, Targets):
                raise ProbqError(
                    "targets are replicated for one output, and these are those of several; leave the data out"
                )
            if seed is not None:
                replicated.append(torch.stack([law.sample().reshape(y.shape) for law in laws]))
    return Predictive(
        torch.cat(log_likelihood, 1).cpu().numpy(),
        torch.cat(replicated, 1).cpu().numpy() if replicated else None,
    )
