"""This module measures loss and accuracy of a network on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from probq.network.distributions.observation import Observation
from probq.network.program.substitution import running
from probq.network.quantized.quantized import Quantized
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import arguments, call


@torch.no_grad()
def validate(q: Quantized, data: Batches) -> dict[str, float]:
    """Return loss and accuracy on data.

    The loss is the negative log-likelihood for one example in nats at the mode; the accuracy, in [0, 1], is there where
    targets are classes.

    Accuracy is the share of observed targets that are the most probable class of the likelihood's law; a law without
    classes has none.
    """
    training = q.training
    q.eval()
    try:
        with validation_errors():
            return scores(q, data, lambda x: call(q, arguments(x)))
    finally:
        q.train(training)


@contextmanager
def validation_errors() -> Iterator[None]:
    """Say within the context that what does not fit is the validation data."""
    try:
        yield
    except ProbqError as error:
        raise ProbqError(f"validation: {error}") from error


def scores(q: Quantized, data: Iterable[tuple[Any, Tensor]], run: Callable[[Any], Any]) -> dict[str, float]:
    """Return the loss and accuracy, as `validate` does, of the outputs that `run` gives for a batch of inputs.

    Raises:
        ProbqError: if the targets do not fit the likelihood.
    """
    nll, rows, right, observed, classes = 0.0, 0, 0, 0, False
    for x, y in data:
        with running(x):
            output = run(x)
        law = Observation(q.law(output, y))
        nll -= float(law.log_prob(y).detach().sum())
        found = law.hits(y)
        rows += y.shape[0]
        if found is not None:
            classes, right, observed = True, right + found[0], observed + found[1]
    result = {"loss": nll / rows}
    return {**result, "accuracy": right / observed} if classes and observed else result
