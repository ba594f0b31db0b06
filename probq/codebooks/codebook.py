"""A codebook is the finite set of values a number may take, up to a scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from probq.utils.errors import ProbqError


def half_up(u: Tensor) -> Tensor:
    """Return `floor(u + 1/2)` without the rounding error of the sum (`u = 0.5 - 2^-25` gives 0, not 1).

    Example:
        >>> half_up(torch.tensor([-0.5, 0.5, 0.5 - 2.0**-25]))
        tensor([0., 1., 0.])
    """
    floor = torch.floor(u)
    return floor + (u - floor >= 0.5).to(u.dtype)


class Codebook:
    """A codebook is the finite set of values that a number may take, up to a scale.

    A new kind says its levels and their number; whatever its own form makes faster, it overrides, as `Grid` does.
    """

    count: int

    @property
    def bits(self) -> float:
        """Return the width in bits, `ceil(log2 K)`; less than a whole one where several weights share a code."""
        return math.ceil(math.log2(self.count))

    @property
    def needs_row(self) -> bool:
        """Return whether the width is known only with the length of a weight's rows; see `for_row`."""
        return False

    @property
    def learned(self) -> bool:
        """Return whether training moves the levels."""
        return False

    @property
    def whole(self) -> bool:
        """Return whether all levels are whole numbers and stay so in training."""
        return not self.learned and torch.equal(self.levels(), self.levels().round())

    def levels(self) -> Tensor:
        """Return all levels in ascending order, shape `[K]`."""
        raise NotImplementedError

    def encode(self, values: Tensor) -> Tensor:
        """Return the code (index of the nearest level, int64) of each value; ties go to the upper level."""
        return encode(values, self.levels().to(values))

    def decode(self, codes: Tensor) -> Tensor:
        """Return the level of each code."""
        return self.levels()[codes]

    def nearest(self, values: Tensor) -> Tensor:
        """Return the nearest level of each value, ties up: `decode(encode(values))` in the values' own dtype."""
        return self.levels().to(values)[self.encode(values)]

    def for_row(self, length: int) -> Codebook:
        """Return the codebook for a weight whose rows have so many numbers, most often itself."""
        return self


@dataclass(frozen=True)
class Grid(Codebook):
    """A grid has the equally spaced integer levels `start, start + step, ..., start + (count - 1) * step`.

    Args:
        start: lowest level.
        step: distance of neighbouring levels, at least 1.
        count: number of levels `K`, at least 1.

    Example:
        >>> Grid(-1, 1, 3).nearest(torch.tensor([-7.0, -0.5, 0.4, 0.5]))
        tensor([-1.,  0.,  0.,  1.])
    """

    start: int
    step: int
    count: int

    def __post_init__(self) -> None:
        if self.step < 1 or self.count < 1:
            raise ProbqError(f"a grid needs a step and a count of at least 1, not {self.step} and {self.count}")

    @property
    def stop(self) -> int:
        """Return the highest level."""
        return self.start + self.step * (self.count - 1)

    def levels(self) -> Tensor:
        """Return all levels in ascending order, shape `[K]`."""
        return self.start + self.step * torch.arange(self.count, dtype=torch.get_default_dtype())

    def encode(self, values: Tensor) -> Tensor:
        """Return the code (index of the nearest level, int64) of each value; ties go to the upper level."""
        return self._code(values).long()

    def decode(self, codes: Tensor) -> Tensor:
        """Return the level of each code."""
        return (self.start + self.step * codes).to(torch.get_default_dtype())

    def nearest(self, values: Tensor) -> Tensor:
        """Return the nearest level of each value, ties up: `decode(encode(values))` in the values' own dtype."""
        return self.start + self.step * self._code(values)

    def _code(self, values: Tensor) -> Tensor:
        # floor(v + 1/2 - start/step): where the constant is an integer or a half, no sum of floats is rounded
        v = values / self.step
        whole, remainder = divmod(self.step - 2 * self.start, 2 * self.step)
        if remainder == 0:
            code = torch.floor(v) + whole
        elif remainder == self.step:
            code = half_up(v) + whole
        else:
            code = torch.floor(v + (0.5 - self.start / self.step))
        return code.clamp(0, self.count - 1)


@dataclass(frozen=True)
class Table(Codebook):
    """A table has any levels, given by the user or learned.

    Args:
        values: the levels, finite and strictly ascending.
        learned: whether each quantizer trains its own copy of the levels.

    Example:
        >>> Table((-4.0, -1.0, 0.0, 1.0, 4.0)).encode(torch.tensor([-2.5, 0.1, 9.0]))
        tensor([1, 2, 4])
    """

    values: tuple[float, ...]
    learned: bool = False

    def __post_init__(self) -> None:
        if not self.values or not all(math.isfinite(v) for v in self.values):
            raise ProbqError("a codebook needs at least one level, all of them finite")
        if any(a >= b for a, b in zip(self.values, self.values[1:], strict=False)):
            raise ProbqError("the levels of a codebook must be given in strictly ascending order")

    @property
    def count(self) -> int:  # type: ignore[override]
        """Return the number of levels `K`."""
        return len(self.values)

    def levels(self) -> Tensor:
        """Return all levels in ascending order, shape `[K]`."""
        return torch.tensor(self.values, dtype=torch.get_default_dtype())


def encode(values: Tensor, levels: Tensor) -> Tensor:
    """Return the code of the nearest of ascending `levels` `[K]` for each value, ties up, by bucketing at midpoints."""
    midpoints = (levels[1:] + levels[:-1]) / 2
    return torch.bucketize(values.detach().contiguous(), midpoints, right=True)
