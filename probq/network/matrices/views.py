"""A matrix that a forward multiplies with is most often a view of one of the network's own tensors."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn

MOST_AXES = 4  # whose orders are tried
SAME = 1e-5  # what examples of a tensor that depends on none may differ by


def without_leading(constant: Tensor, x: Tensor) -> Tensor | None:
    """Return a constant operand of a product of matrices as one matrix, `[rows, columns]`.

    In front of these it may have axes of length 1, or along which it is the same for as many examples as the other
    operand has; None where it has others, and holds several matrices.
    """
    if constant.dim() > x.dim():
        return None
    while constant.dim() > 2:
        axis, size = -constant.dim(), constant.shape[0]
        if size != 1 and (size != x.shape[axis] or not _is_repeated(constant)):
            return None
        constant = constant[0]
    return constant if constant.dim() == 2 else None


def _is_repeated(constant: Tensor) -> bool:
    """Return whether a tensor is the same at every index of its first axis, up to rounding."""
    return not constant.stride(0) or torch.allclose(constant, constant[:1], rtol=SAME, atol=SAME)


def read_matrices(constant: Tensor, x: Tensor, operand: int) -> tuple[Tensor, int] | None:
    """Return several constant matrices as the weight of a convolution in groups, and how many they are.

    Args:
        constant: the matrices, one for each index of the axes between the batch and those of matrices.
        x: what they are multiplied with, the batch as its first axis.
        operand: 0 where `x` is in front of the constant, else 1.

    Returns:
        The weight `[matrices * out, in, 1]` and the number of matrices; None where they are something else.
    """
    if x.dim() == constant.dim() and (constant.shape[0] == 1 or _is_repeated(constant)):
        constant = constant[0]
    if constant.dim() < 3 or x.dim() != constant.dim() + 1 or x.shape[1:-2] != constant.shape[:-2]:
        return None
    matrices = constant if operand else constant.transpose(-2, -1)
    return matrices.reshape(-1, matrices.shape[-1], 1), math.prod(constant.shape[:-2])


def arrangement(view: Tensor, base: Tensor) -> list[int] | None:
    """Return the order of the axes of `base` that makes it a matrix, some of them joined; None where it is no view.

    Args:
        view: a matrix.
        base: a contiguous tensor, each of whose axes is in the rows or in the columns.
    """
    same = view.data_ptr() == base.data_ptr() and view.numel() == base.numel()
    if not same or not base.is_contiguous() or base.dim() > MOST_AXES or view.dtype != base.dtype:
        return None
    for axes in itertools.permutations(range(base.dim())):
        try:
            found = base.detach().permute(axes).view(view.shape)
        except RuntimeError:  # axes that are apart in memory cannot be joined
            continue
        sizes = itertools.accumulate((base.shape[axis] for axis in axes), operator.mul)
        if view.shape[0] in sizes and all(
            n == 1 or a == b for n, a, b in zip(view.shape, found.stride(), view.stride(), strict=True)
        ):
            return list(axes)
    return None


def read_matrix(
    net: nn.Module, constant: Tensor, x: Tensor, operand: int
) -> tuple[str | Sequence[int], list[int], list[int], Tensor | None] | None:
    """Return the weight of a product of a tensor `x` with a constant.

    Args:
        net: the network, whose parameters and buffers the constant may be a view of.
        constant: one or several matrices that are multiplied, or a vector behind `x`.
        x: what they are multiplied with, the batch as its first axis.
        operand: 0 where `x` is in front of the constant, else 1.

    Returns:
        The name of a tensor, or the shape of what is none of the network's; the order of its axes and the sizes of the
        matrix `[out, in]`, none where it is that; and what is none of the network's. None where the constant is no one
        matrix, or something else than an axis of one example is summed over.
    """
    if constant.dim() == 1 and not operand:
        matrix = constant[None]
    else:
        found = without_leading(constant, x)
        if found is None or x.dim() < 2 + operand:
            return None
        matrix = found if operand else found.T
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        axes = arrangement(matrix, tensor)
        if axes is not None:
            plain = tensor.dim() == 2 and axes == [0, 1]
            return name, [] if plain else axes, [] if plain else list(matrix.shape), None
    return list(matrix.shape), [], [], matrix


def as_parameter(net: nn.Module, name: str) -> nn.Parameter:
    """Return a parameter of a network; a buffer of that name becomes one under all its names, and is frozen.

    Raises:
        AttributeError: if the network has neither.
    """
    owner, _, own = name.rpartition(".")
    buffer = net.get_submodule(owner)._buffers.get(own)
    if buffer is None:
        return net.get_parameter(name)
    frozen = nn.Parameter(buffer, requires_grad=False)
    for module in net.modules():
        for key in [key for key, tensor in module._buffers.items() if tensor is buffer]:
            del module._buffers[key]
            module.register_parameter(key, frozen)
    return frozen
