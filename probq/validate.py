"""Loss and accuracy of a network on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from probq.batches import Batches
from probq.errors import ProbqError
from probq.program import Observation
from probq.quantized import Quantized


@torch.no_grad()
def validate(q: Quantized, data: Batches) -> dict[str, float]:
    """Negative log-likelihood for one example in nats at the mode, and accuracy in [0, 1] where targets are classes."""
    training = q.training
    q.eval()
    try:
        return scores(q, data, lambda x: q(*x) if isinstance(x, tuple) else q(x))
    finally:
        q.train(training)


def scores(q: Quantized, data: Iterable[tuple[Any, Tensor]], run: Callable[[Any], Any]) -> dict[str, float]:
    """Loss and accuracy as `validate`, of the outputs that `run` gives for a batch of inputs.

    Raises:
        ProbqError: if the targets do not fit the likelihood.
    """
    nll, right, rows, classes = 0.0, 0, 0, False
    for x, y in data:
        output = run(x)
        try:
            nll -= float(Observation(q.law(output, y)).log_prob(y).sum())
        except ValueError as error:  # the targets are checked by torch, whose sentence ends with all of them
            reason = str(error).splitlines()[0]
            raise ProbqError(f"the validation data does not fit the likelihood: {reason}") from error
        rows += y.shape[0]
        classes = not y.is_floating_point() and isinstance(output, torch.Tensor) and output.dim() == y.dim() + 1
        if classes:
            right += int((output.argmax(-1) == y).float().mean() * y.shape[0] + 0.5)
    result = {"loss": nll / rows}
    return {**result, "accuracy": right / rows} if classes else result
