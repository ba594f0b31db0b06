"""A matrix is a layer whose weight has its axes in another order than that of `nn.Linear`."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn


class Matrix(nn.Module):
    """A matrix multiplies the last axis of what it is called with.

        y = x M',   M `[out, in]` the weight with its axes in another order, some of them joined

    Args:
        weight: a tensor of any shape.
        axes: the order of its axes in the matrix.
        sizes: rows and columns of the matrix, `[out, in]`.

    Attributes:
        in_features, out_features: the sizes of input and output.
        channel_axis: the axis of the weight that runs over outputs, the longest one where several do.
    """

    def __init__(self, weight: nn.Parameter, axes: Sequence[int], sizes: Sequence[int]) -> None:
        super().__init__()
        self.weight, self.axes = weight, list(axes)
        self.out_features, self.in_features = sizes
        ends = list(itertools.accumulate((weight.shape[axis] for axis in self.axes), operator.mul))
        self.channel_axis = max(self.axes[: ends.index(self.out_features) + 1], key=lambda axis: weight.shape[axis])

    def arranged(self, values: Tensor) -> Tensor:
        """Return numbers of the weight's shape, or that broadcast to it, as a matrix `[out, in]`."""
        spread = values.expand(self.weight.shape)
        return spread.permute(self.axes).reshape(self.out_features, self.in_features)

    def rows(self, values: Tensor) -> Tensor:
        """Return numbers that broadcast to the weight and differ in its channel axis alone, for each row, `[out]`."""
        return self.arranged(values)[:, 0]

    def arranged_array(self, values: np.ndarray) -> np.ndarray:
        """Return an array that broadcasts to the weight as a matrix, with one column where all columns are equal."""
        spread = np.broadcast_to(values, tuple(self.weight.shape))
        matrix = spread.transpose(self.axes).reshape(self.out_features, self.in_features)
        return matrix[:, :1] if (matrix == matrix[:, :1]).all() and values.shape != spread.shape else matrix

    def forward(self, x: Tensor) -> Tensor:
        """Return the products, `[..., out]`."""
        return F.linear(x, self.arranged(self.weight))
