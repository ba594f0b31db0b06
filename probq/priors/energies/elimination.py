"""Partition functions of energies with pairs are computed exactly by eliminating one quantizer after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import opt_einsum
import torch
from torch import Tensor

Pairs = Mapping[tuple[int, int], Tensor]  # energies of two quantizers, [rungs of one, rungs of the other]
LARGEST = 2**22  # numbers in one table


class Elimination:
    """An elimination takes the quantizers of a Markov random field over widths out of its sum, one by one.

    Args:
        sizes: number of rungs of each quantizer.
        edges: pairs of quantizers that have an energy.
    """

    def __init__(self, sizes: Sequence[int], edges: Sequence[tuple[int, int]]) -> None:
        self.sizes, self.edges = tuple(sizes), tuple(edges)
        self.terms = [*((k,) for k in range(len(sizes))), *self.edges]
        symbols = [opt_einsum.get_symbol(k) for k in range(len(sizes))]
        equation = ",".join("".join(symbols[k] for k in term) for term in self.terms) + "->"
        shapes = [tuple(self.sizes[k] for k in term) for term in self.terms]
        path, told = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize="greedy")
        self.path, self.largest = [tuple(step) for step in path], int(told.largest_intermediate)

    @property
    def feasible(self) -> bool:
        """Return whether no table on the way is too large."""
        return self.largest <= LARGEST

    def log_partition(self, unary: Sequence[Tensor], pairs: Pairs) -> Tensor:
        """Return `log sum_w exp(-energy(w))` in nats, `[n]`.

        Args:
            unary: energies `[n, rungs]` of each quantizer, for `n` fields at once that share their pairs.
            pairs: energies of each edge.
        """
        tables: list[tuple[tuple[int, ...], Tensor]] = [((k,), -row) for k, row in enumerate(unary)]
        tables += [(edge, -pairs[edge][None]) for edge in self.edges]
        for step in self.path:
            taken = [tables.pop(k) for k in sorted(step, reverse=True)]
            left = {k for term, _ in tables for k in term}
            tables.append(_contracted(taken, left))
        (_, total), *others = tables
        assert not others  # a path ends with one table
        return total.reshape(len(unary[0]))


def _contracted(taken: Sequence[tuple[tuple[int, ...], Tensor]], left: set[int]) -> tuple[tuple[int, ...], Tensor]:
    """Return the sum of log tables over the quantizers that no other table knows, and the names that remain."""
    names = sorted({k for term, _ in taken for k in term})
    total: Tensor | float = 0.0
    for term, table in taken:
        order = sorted(range(len(term)), key=lambda place: term[place])
        moved = table.permute(0, *(1 + place for place in order))
        total = total + moved[(slice(None), *(slice(None) if k in term else None for k in names))]
    assert isinstance(total, Tensor)  # at least one table was taken
    gone = [1 + place for place, k in enumerate(names) if k not in left]
    return tuple(k for k in names if k in left), total.logsumexp(gone) if gone else total


def marginals(elimination: Elimination, unary: Sequence[Tensor], pairs: Pairs) -> list[Tensor]:
    """Return the exact law of each quantizer alone, `[n, rungs]`: minus the gradient of the log partition function."""
    leaves = [row.detach().clone().requires_grad_() for row in unary]
    with torch.enable_grad():
        total = elimination.log_partition(leaves, pairs).sum()
    return [-gradient for gradient in torch.autograd.grad(total, leaves)]


def draws(
    elimination: Elimination, unary: Sequence[Tensor], pairs: Pairs, n: int, generator: torch.Generator
) -> Tensor:
    """Return exact, independent draws of rungs, `[n, quantizers]`: each quantizer given those before it."""
    rows = [row.expand(n, -1).clone() for row in unary]
    drawn = []
    for k in range(len(rows)):
        law = marginals(elimination, rows, pairs)[k].clamp_min(0)
        rung = torch.multinomial(law, 1, generator=generator)
        drawn.append(rung)
        rows[k] = torch.full_like(rows[k], math.inf).scatter(1, rung, rows[k].gather(1, rung))
    return torch.cat(drawn, 1)
