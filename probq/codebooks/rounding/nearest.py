"""Numbers are rounded to levels here, with the gradients that training needs; all other rounding builds on this.

Rounding is half up everywhere, `floor(u + 1/2)`, as in the integers that leave probq.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from probq.codebooks import Grid
from probq.codebooks.codebook import encode, half_up
from probq.codebooks.rounding.vectors import Vectors


@dataclass(frozen=True)
class BroadcastGrid:
    """This is a grid for each number, with the fields of `Grid` as tensors that broadcast to the numbers."""

    start: Tensor
    step: Tensor
    count: Tensor


@dataclass(frozen=True)
class BroadcastTable:
    """These are levels for each number, those of one of several codebooks.

    Attributes:
        books: the levels of each codebook, ascending.
        row: the codebook of each number, broadcastable to the numbers, int64.
    """

    books: tuple[Tensor, ...]
    row: Tensor

    @cached_property
    def count(self) -> Tensor:
        """Return the number of levels of each number."""
        return torch.tensor([len(book) for book in self.books], device=self.row.device)[self.row]

    def at(self, row: Tensor, codes: Tensor) -> Tensor:
        """Return the levels of codes of codebooks; a code above the last goes on at their mean distance."""
        most = max(len(book) for book in self.books)
        return torch.stack([_continued(book, most) for book in self.books])[row, codes]

    def codes(self, find: Callable[[Tensor], Tensor]) -> Tensor:
        """Return for each number the code that `find` gives it on its codebook's levels `[K]`."""
        found = find(self.books[0])
        for k, book in enumerate(self.books[1:], 1):
            found = torch.where(self.row == k, find(book), found)
        return found


def _continued(levels: Tensor, count: int) -> Tensor:
    """Return ascending levels, and as many behind the last one as make `count`."""
    distance = (levels[-1] - levels[0]) / (len(levels) - 1) if len(levels) > 1 else torch.ones_like(levels[0])
    return torch.cat([levels, levels[-1] + distance * torch.arange(1, count - len(levels) + 1).to(levels)])


LevelsOfOne: TypeAlias = Grid | BroadcastGrid | BroadcastTable | Tensor  # of single numbers
Levels: TypeAlias = LevelsOfOne | Vectors


def counts(levels: Levels) -> int | Tensor:
    """Return the number of levels, a tensor where codebooks differ between weights."""
    return levels.shape[0] if isinstance(levels, Tensor) else levels.count


def largest_count(levels: Levels) -> int:
    """Return the number of levels `K`, the largest where codebooks differ between weights."""
    each = counts(levels)
    return int(each.max()) if isinstance(each, Tensor) else each


def all_levels(levels: Grid | Vectors | Tensor, like: Tensor | None = None) -> Tensor:
    """Return all levels of one codebook `[K]`, those of a grid in the dtype and at the place of another tensor.

    Raises:
        ProbqError: if the codebook has vectors.
    """
    if isinstance(levels, Tensor):
        return levels
    return levels.levels() if like is None else levels.levels().to(like)


def without_gradient(levels: Levels) -> Levels:
    """Return the levels as they are, where they are learned too."""
    if isinstance(levels, Vectors):
        return levels.without_gradient()
    return levels.detach() if isinstance(levels, Tensor) else levels


def nearest_level(u: Tensor, levels: Levels, straight_through: bool = False) -> Tensor:
    """Return the nearest level of each `u`, ties up.

    Args:
        u: values in units of the scale.
        levels: a grid (its fields may be tensors) or ascending levels `[K]`.
        straight_through: pass the gradient to `u` unchanged where `u` lies within half a step of the levels'
            range, and drop it outside (Y. Bengio, N. Leonard, A. Courville, 2013, "Estimating or Propagating
            Gradients Through Stochastic Neurons"); for sub-vectors pass all of it. Gradients of learned levels are
            exact.
    """
    if not straight_through:
        return _nearest(u, levels)
    if isinstance(levels, Grid):
        return _NearestThrough.apply(u, levels)
    value = _nearest(u, levels)
    if isinstance(levels, Vectors):
        return value + (u - u.detach())
    inside = (u.detach() - value.detach()).abs() <= _reach(levels)
    return value + (u - u.detach()) * inside


class _NearestThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, grid: Grid) -> Tensor:
        ctx.save_for_backward(u)
        ctx.grid = grid
        return grid.nearest(u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (u,), grid = ctx.saved_tensors, ctx.grid
        return inside_range(grads[0], u, grid.start - grid.step / 2, grid.stop + grid.step / 2), None


def half_up_through(u: Tensor) -> Tensor:
    """Return `floor(u + 1/2)` with the gradient passed on unchanged."""
    return half_up(u.detach()) + (u - u.detach())


def inside_range(grad: Tensor, u: Tensor, low: float, high: float) -> Tensor:
    """Return the gradient where `low < u < high`, else 0.

    This takes one pass; a product with a mask takes fifty times longer.
    """
    return torch.ops.aten.hardtanh_backward(grad, u, low, high)


def _nearest(u: Tensor, levels: Levels) -> Tensor:
    if isinstance(levels, Vectors):
        return levels.nearest(u).to(u)
    if isinstance(levels, Tensor):
        return levels[encode(u, levels)]
    if isinstance(levels, BroadcastTable):
        return levels.at(levels.row, levels.codes(lambda book: encode(u, book)))
    if isinstance(levels.count, int):
        return levels.nearest(u.detach())
    codes = half_up((u.detach() - levels.start) / levels.step)
    return levels.start + levels.step * clip_codes(codes, levels.count - 1)


def _reach(levels: LevelsOfOne) -> Tensor | float:
    """Return the farthest distance of a value inside the range from its nearest level."""
    if isinstance(levels, Tensor):
        return float((levels[1:] - levels[:-1]).detach().max()) / 2 if levels.shape[0] > 1 else 0.0
    if isinstance(levels, BroadcastTable):
        return torch.tensor([_reach(book) for book in levels.books], device=levels.row.device)[levels.row]
    return levels.step / 2


def clip_codes(codes: Tensor, highest: int | Tensor) -> Tensor:
    """Return the codes limited to `0 .. highest`."""
    if isinstance(highest, Tensor):
        return torch.minimum(codes.clamp_min(0), highest)
    return codes.clamp(0, highest)


def first_code(u: Tensor, levels: LevelsOfOne, nearest: int) -> Tensor:
    """Return the code of the lowest of the `nearest` neighbouring levels around each `u`, int64."""
    if isinstance(levels, Tensor):
        below = torch.bucketize(u.detach().contiguous(), levels.detach(), right=True) - 1
        centre = encode(u, levels.detach())
        last: int | Tensor = levels.shape[0] - nearest
    elif isinstance(levels, BroadcastTable):
        below = levels.codes(lambda book: torch.bucketize(u.detach().contiguous(), book, right=True)) - 1
        centre = levels.codes(lambda book: encode(u, book))
        last = levels.count - nearest
    else:
        t = (u.detach() - levels.start) / levels.step
        below, centre = torch.floor(t).long(), torch.floor(t + 0.5).long()
        last = levels.count - nearest
    first = below - (nearest // 2 - 1) if nearest % 2 == 0 else centre - (nearest - 1) // 2
    highest = last.clamp_min(0) if isinstance(last, Tensor) else max(last, 0)
    return clip_codes(first, highest)


def decode(codes: Tensor, levels: Levels) -> tuple[Tensor, int | Tensor]:
    """Return the level of each code, and the last valid code (broadcastable to the codes)."""
    if isinstance(levels, Vectors):
        return levels.at(codes), levels.count - 1
    if isinstance(levels, Tensor):
        return levels[codes], levels.shape[0] - 1
    if isinstance(levels, BroadcastTable):
        window = codes.dim() > levels.row.dim()
        row, end = (t.unsqueeze(-1) if window else t for t in (levels.row, levels.count - 1))
        return levels.at(row, codes), end
    start, step, last = levels.start, levels.step, levels.count - 1
    if isinstance(last, Tensor) and codes.dim() > last.dim():
        start, step, last = (torch.as_tensor(v).unsqueeze(-1) for v in (start, step, last))
    return (start + step * codes).to(torch.get_default_dtype()), last


def per_rung(grids: Sequence[Grid], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return start, step and count of every rung, each `[B, 1, ..]`, to broadcast against `[B, *like]`."""
    rows = torch.tensor([[g.start, g.step, g.count] for g in grids], dtype=like.dtype, device=like.device)
    start, step, count = rows.reshape(len(grids), 3, *[1] * like.dim()).unbind(1)
    return start, step, count


def code_indices(levels: Levels, values: Tensor) -> Tensor:
    """Return the code (int64) of level values, one for each number or sub-vector."""
    if isinstance(levels, Vectors):
        return levels.codes(values)
    if isinstance(levels, Tensor):
        return encode(values, levels.detach())
    if isinstance(levels, BroadcastTable):
        return levels.codes(lambda book: encode(values, book))
    return torch.round((values - levels.start) / levels.step).long()


def code_levels(levels: Levels, codes: Tensor) -> Tensor:
    """Return the level values of codes."""
    return decode(codes, levels)[0]


def for_each_weight(levels: Levels, of_codes: Tensor) -> Tensor:
    """Return what is said of each code for each number that it stands for, one or a sub-vector."""
    return levels.of_weights(of_codes) if isinstance(levels, Vectors) else of_codes
