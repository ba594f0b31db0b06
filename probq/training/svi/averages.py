"""Parameters are averaged over the steps of a phase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

START = 10  # steps in which the average forgets what it started from


class Averages:
    """These are exponential moving averages of parameters, `a <- d_k a + (1 - d_k) theta` after step `k = 1, 2, ...`

    They start at the parameters, and forget them soon: `d_k = min(d, (1 + k) / (10 + k))`.

    Args:
        parameters: the tensors `theta`.
        decay: `d`.

    Source: B. T. Polyak, A. B. Juditsky, 1992, "Acceleration of Stochastic Approximation by Averaging", with equal
    weights in place of `d`.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters, self.decay, self.count = list(parameters), decay, 0
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def move(self) -> None:
        """Move the averages after a step."""
        self.count += 1
        share = 1 - min(self.decay, (1 + self.count) / (START + self.count))
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, share)

    @torch.no_grad()
    def take(self) -> None:
        """Give the parameters the values of their averages."""
        for value, parameter in zip(self.values, self.parameters, strict=True):
            parameter.copy_(value)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Give the parameters the values of their averages within the context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for value, parameter in zip(self.values, self.parameters, strict=True):
            kept = parameter.clone()
            parameter.copy_(value)
            value.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and the number of steps."""
        return {"count": self.count, "values": list(self.values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self.count = state_dict["count"]
        for value, kept in zip(self.values, state_dict["values"], strict=True):
            value.copy_(kept)
