"""Sub-vectors of a weight are rounded to the nearest vectors of tables, in a metric that inputs weigh."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probq.utils.errors import ProbqError


@dataclass(frozen=True, eq=False)
class Vectors:
    """Vectors are the levels of a weight whose rows of `n d` numbers are `n` sub-vectors, each with one code.

    The nearest vector `c` to a sub-vector `u` in place `j` of its row has the least `sum_i h_ji (u_i - c_i)^2`, with
    `h` the importance of each number of a row, most often the mean square of the input that it meets.

    Args:
        table: vectors in units of the scale, `[1, K, d]`, or `[n, K, d]` with a table for each place in a row.
        importance: positive, `[n, d]`.
        shape: of the weight; its rows are what one index of the first axis has.

    Example:
        >>> two = Vectors(torch.tensor([[[0.0, 0.0], [3.0, 4.0]]]), torch.ones(1, 2), (2, 2))
        >>> two.codes(torch.tensor([[1.0, 1.0], [2.0, 3.0]]))
        tensor([[0],
                [1]])
    """

    table: Tensor
    importance: Tensor
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Return the number `K` of vectors that a code chooses from."""
        return self.table.shape[1]

    def without_gradient(self) -> Vectors:
        """Return the same vectors, which get no gradient."""
        return replace(self, table=self.table.detach())

    def levels(self) -> Tensor:
        """Raise, because a single weight has no levels of its own.

        Raises:
            ProbqError: with what to do.
        """
        raise ProbqError("single weights of a vector codebook have no levels of their own; ask this of another weight")

    def blocks(self, values: Tensor) -> Tensor:
        """Return numbers for each weight as sub-vectors, `[rows, n, d]`."""
        return values.reshape(-1, *self.importance.shape)

    def at(self, codes: Tensor) -> Tensor:
        """Return the levels of codes `[rows, n]`, shaped like the weight."""
        return self.chosen(codes).reshape(self.shape)

    def chosen(self, codes: Tensor) -> Tensor:
        """Return the vectors of codes `[rows, n, ...]`, `[rows, n, ..., d]`."""
        place = torch.arange(codes.shape[1], device=codes.device) % len(self.table)
        return self.table[place.reshape(-1, *[1] * (codes.dim() - 2)), codes]

    def of_weights(self, values: Tensor) -> Tensor:
        """Return what is said of codes `[rows, n]` for each of their weights, shaped like the weight."""
        return values.unsqueeze(-1).expand(*values.shape, self.importance.shape[1]).reshape(self.shape)

    @torch.no_grad()
    def closest(self, u: Tensor, number: int) -> Tensor:
        """Return the codes of so many nearest vectors of each sub-vector, the nearest first, `[rows, n, number]`.

        Args:
            u: values in units of the scale, shaped like the weight, or some of its rows.
            number: from 1 to `K`.
        """
        # in float64: a location that was put upon a vector is the nearest to it, whatever the importances
        h, c = self.importance.double(), self.table.double()
        pull = torch.einsum("rnd,nkd->rnk", self.blocks(u).double() * h, c.expand(len(h), *c.shape[1:]))
        distance = (h.unsqueeze(1) * c.square()).sum(-1) - 2 * pull  # but for what all vectors have in common
        if number == 1:
            return distance.argmin(-1, keepdim=True)
        return distance.topk(number, largest=False).indices

    @torch.no_grad()
    def codes(self, values: Tensor) -> Tensor:
        """Return the codes of the nearest vectors, `[rows, n]` int64, of equal vectors the first one's."""
        found = self.closest(values, 1).squeeze(-1)
        place = torch.arange(found.shape[1], device=found.device) % len(self.table)
        return torch.stack([_first_equal(part) for part in self.table])[place, found]

    def nearest(self, u: Tensor) -> Tensor:
        """Return the nearest vectors, shaped like `u`, with the gradient of the tables."""
        return self.chosen(self.closest(u, 1).squeeze(-1)).reshape(u.shape)


def _first_equal(table: Tensor) -> Tensor:
    """Return for each vector of a table `[K, d]` the number of the first one that is equal, `[K]`."""
    same = torch.unique(table.detach(), dim=0, return_inverse=True)[1]
    number = torch.arange(len(table), device=table.device)
    first = torch.full_like(number, len(table)).scatter_reduce(0, same, number, "amin")
    return first[same]
