"""Draws from the posterior say about data the log-likelihood of every observation, and replicated targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probq.decisions.assignment import Assignment
from probq.decisions.within_budget import sample
from probq.likelihoods.per_output import OutputLaws, by_output
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
        replicated: targets drawn from the likelihood, `[draws, observations, ...]`, by the names of `targets_by_name`;
            empty where none are.
    """

    log_likelihood: np.ndarray
    replicated: dict[str, np.ndarray]


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
    log_likelihood, replicated = [], dict[str, list[Tensor]]()
    with Stream(seed).drawing():
        for x, y in data:
            laws = [q.law(output, y) for output in q.outputs(list(assignments), x)]
            try:
                log_likelihood.append(torch.stack([Observation(law).log_prob(y).double() for law in laws]))
            except ValueError as error:  # torch checks the targets
                raise ProbqError(f"the data does not fit the likelihood: {error!s:.300}") from error
            drawn = [targets_by_name(law, law.sample()) for law in laws] if seed is not None else []
            for name, target in targets_by_name(laws[0], y).items() if drawn else ():
                rows = torch.stack([each[name].reshape(target.shape) for each in drawn])
                replicated.setdefault(name, []).append(rows)
    return Predictive(
        torch.cat(log_likelihood, 1).cpu().numpy(),
        {name: torch.cat(parts, 1).cpu().numpy() for name, parts in replicated.items()},
    )


def targets_by_name(law: Any, targets: Any) -> dict[str, Tensor]:
    """Return the targets of one output as `y`, those of several with the way to them behind it, such as `y.boxes`."""
    if not isinstance(law, OutputLaws):
        return {"y": targets}
    found = by_output(law.names, targets.of if isinstance(targets, Targets) else targets)
    return {"y" + name.removeprefix("obs"): found[name] for name in law.laws}
