"""An exported network shows one step of each recurrence, between marks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from probq.nn.cells import States
from probq.nn.recurrence import Recurrence

Marker = Callable[[Tensor], Tensor]


def loop_marks(net: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the kind and the name of each mark that a recurrence of a network needs."""
    for name, module in net.named_modules():
        if isinstance(module, Recurrence):
            yield from (("item", name), ("outputs", name))
            for place in range(len(module.cell.sizes)):
                yield from ((kind, f"{name}#{place}") for kind in ("state", "end", "last"))


def show_one_step(net: nn.Module, marks: Mapping[str, Mapping[str, Any]]) -> None:
    """Let each recurrence of a network compute its first step alone, with marks around it.

    Args:
        net: the network, changed in place.
        marks: by kind and name, functions whose calls stand for marks.
    """
    for name, module in net.named_modules():
        if isinstance(module, Recurrence):
            module.walk = _one_step(name, marks)


def _one_step(name: str, marks: Mapping[str, Mapping[str, Marker]]) -> Any:
    def walk(recurrence: Recurrence, items: Tensor, states: States) -> tuple[Tensor, States]:
        item = marks["item"][name](items.select(1, 0))
        begun = tuple(marks["state"][f"{name}#{place}"](state) for place, state in enumerate(states))
        after = recurrence.cell(item, begun)
        ends = [marks["end"][f"{name}#{place}"](state) for place, state in enumerate(after)]
        together = torch.cat(ends, -1)
        outputs = together[:, : ends[0].shape[-1]].unsqueeze(1).expand(-1, items.shape[1], -1)
        last = (marks["last"][f"{name}#{k}"](together[:, : end.shape[-1]]) for k, end in enumerate(ends))
        return marks["outputs"][name](outputs), tuple(last)

    return walk
