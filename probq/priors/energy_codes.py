"""The law of codes of an energy gives each level of a codebook a probability, whatever the scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from probq.codebooks import Grid
from probq.codebooks.rounding.nearest import (
    BroadcastGrid,
    BroadcastTable,
    Levels,
    all_levels,
    clip_codes,
    code_indices,
    code_levels,
)
from probq.codebooks.rounding.vectors import Vectors
from probq.priors.nonuniform_codes import NonuniformCodes


class EnergyCodes(NonuniformCodes):
    """This law is `P(l_j) = exp(-U(l_j)) / sum_k exp(-U(l_k))`, the sum over all levels of the codebook.

    Args:
        shape: the shape of the weight.
        levels: as in `Codes`.
        energy: from all levels of a codebook `[K]` to their energies `U` in nats `[K]`.
        device: where draws are made.

    Example:
        >>> from probq.codebooks import ternary
        >>> law = EnergyCodes(torch.Size([2]), ternary(), lambda levels: levels.square())
        >>> law.log_probs(torch.tensor([0.0, 1.0])).exp()
        tensor([0.5761, 0.2119])
    """

    def __init__(
        self,
        shape: torch.Size,
        levels: Levels,
        energy: Callable[[Tensor], Tensor],
        device: torch.device | None = None,
    ) -> None:
        super().__init__(shape, levels, device)
        self._row, books = _books(levels, device)
        tables = [torch.log_softmax(-energy(all_levels(book).to(device)).double(), 0) for book in books]
        most = max(len(table) for table in tables)
        self._table = torch.stack([F.pad(table, (0, most - len(table)), value=-torch.inf) for table in tables])

    def log_probs(self, levels: Tensor) -> Tensor:
        """Return the log-probability of levels, shaped as the weight or `[*weight, m]`."""
        if levels.dim() > len(self.event_shape):
            return torch.stack([self.log_probs(column) for column in levels.unbind(-1)], -1)
        codes = clip_codes(code_indices(self.levels, levels.detach()), self._table.shape[1] - 1)
        return self._table[self._row, codes].to(levels.dtype)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw independent levels `[*sample_shape, *shape]`, without gradient."""
        shape = torch.Size([*sample_shape, *self.event_shape])
        rows, codes = self._row.expand(shape), torch.empty(shape, dtype=torch.int64, device=self.device)
        with torch.no_grad():
            for k, table in enumerate(self._table.exp()):
                there = rows == k
                if count := int(there.sum()):
                    codes[there] = torch.multinomial(table, count, replacement=True)
            flat = codes.reshape(-1, *self.event_shape)
            return torch.stack([code_levels(self.levels, part) for part in flat]).reshape(shape)


def _books(levels: Levels, device: torch.device | None) -> tuple[Tensor, list[Grid | Tensor]]:
    """Return the codebook of each weight, as a place among the distinct ones, and these."""
    if isinstance(levels, BroadcastTable):
        return levels.row, list(levels.books)
    if not isinstance(levels, BroadcastGrid):
        assert not isinstance(levels, Vectors)  # whose prior is uniform
        return torch.zeros((), dtype=torch.int64, device=device), [levels]
    fields = torch.stack([torch.as_tensor(f) for f in (levels.start, levels.step, levels.count)], -1)
    found, row = torch.unique(fields.reshape(-1, 3), dim=0, return_inverse=True)
    return row.reshape(fields.shape[:-1]), [Grid(*map(int, one)) for one in found.tolist()]
