"""A recurrence takes a cell along the time axis of a sequence, in one direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from probq.nn.cells import States

Walk = Callable[["Recurrence", Tensor, States], tuple[Tensor, States]]


class Recurrence(nn.Module):
    """A recurrence computes the steps of a cell, each from the states that the one before it left.

    What the inputs add to the gates is one product for all time steps, in front of them.

    Args:
        input_size: numbers of one time step.
        cell: what a step computes.
        bias: whether `ih` adds one.
        reverse: whether the last time step comes first.

    Attributes:
        ih: the linear layer of the inputs.
        walk: what takes the cell along the time axis; None: a loop in Python.
    """

    def __init__(self, input_size: int, cell: Any, bias: bool = True, reverse: bool = False) -> None:
        super().__init__()
        self.ih = nn.Linear(input_size, cell.gates * cell.sizes[-1], bias)
        self.cell, self.reverse = cell, reverse
        self.walk: Walk | None = None

    def forward(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        """Return the outputs of all steps `[batch, time, output]`, and the states after the last one.

        Args:
            x: `[batch, time, input]`.
            states: those before the first step, `[batch, ...]`.
        """
        items = self.ih(x)
        return (take_steps if self.walk is None else self.walk)(self, items, states)


def take_steps(recurrence: Recurrence, items: Tensor, states: States) -> tuple[Tensor, States]:
    """Return what a recurrence does, step by step."""
    outputs = []
    for item in reversed(items.unbind(1)) if recurrence.reverse else items.unbind(1):
        states = recurrence.cell(item, states)
        outputs.append(states[0])
    return torch.stack(outputs[::-1] if recurrence.reverse else outputs, 1), states
