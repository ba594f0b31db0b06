"""Targets of several outputs stand where those of one do, as far as batches are concerned."""

from __future__ import annotations

from typing import Any

import torch

from probq.utils.structures.tensors import map_tensors, rows_of


class Targets:
    """These are the targets of a batch for a network of several outputs, a structure of tensors.

    Args:
        of: a tuple, list or dictionary of tensors, each with the examples on its first axis.
    """

    def __init__(self, of: Any) -> None:
        self.of = of

    @property
    def shape(self) -> torch.Size:
        """Return the number of examples, as the only axis."""
        return torch.Size([len(self)])

    @property
    def dtype(self) -> str:
        """Return that there is not one type, for messages."""
        return "several types"

    def dim(self) -> int:
        """Return the number of axes that all have."""
        return 1

    def is_floating_point(self) -> bool:
        """Return that they are not all real numbers."""
        return False

    def to(self, device: torch.device) -> Targets:
        """Return them on a device."""
        return Targets(map_tensors(lambda y: y.to(device), self.of))

    def __len__(self) -> int:
        return rows_of(self.of)

    def __getitem__(self, rows: slice) -> Targets:
        return Targets(map_tensors(lambda y: y[rows], self.of))
