"""Scales and levels of least squared error have closed forms, given codes; codes and scales found in turn."""

from __future__ import annotations

import torch
from torch import Tensor

from probq.codebooks.codebook import encode
from probq.codebooks.rounding.nearest import Levels, nearest_level
from probq.utils.arguments import check_number
from probq.utils.errors import ProbqError

ROUNDS = 10


def xnor_scale(weight: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Return `mean |w|`, the `a` of least `||w - a sign(w)||^2`.

    Args:
        weight: real weights.
        shape: what shares a scale, broadcastable to the weight: `()` for all, `[C, 1, ..]` for each output channel.

    Raises:
        ProbqError: if there are no weights, or the shape is not one that they share.

    Source: M. Rastegari, V. Ordonez, J. Redmon, A. Farhadi, 2016, "XNOR-Net: ImageNet Classification Using Binary
    Convolutional Neural Networks".

    Example:
        >>> xnor_scale(torch.tensor([[1.0, -3.0], [0.5, 0.5]]), (2, 1))
        tensor([[2.0000],
                [0.5000]])
    """
    if not isinstance(weight, Tensor) or not weight.numel():
        raise ProbqError("xnor_scale takes a tensor of one weight or more")
    try:
        shared = torch.broadcast_shapes(shape, weight.shape) == weight.shape
    except (RuntimeError, TypeError):
        shared = False
    if not shared:
        raise ProbqError(
            f"weights of shape {tuple(weight.shape)} do not share scales of shape {shape!r}; give () for one scale of "
            f"all, or {(len(weight), *[1] * (weight.dim() - 1)) if weight.dim() else ()} for one of each channel"
        )
    return weight.abs().sum_to_size(shape) / torch.ones_like(weight).sum_to_size(shape)


def weighted_scale(
    weight: Tensor, curvature: Tensor, levels: Levels, scale: Tensor, rounds: int = ROUNDS
) -> tuple[Tensor, Tensor]:
    """Return scale and levels of least `sum d (a b - w)^2`, by turns.

    They are `b` nearest to `w / a`, and `a = sum d b w / sum d b^2`. Neither turn ever increases the sum. On the
    binary codebook one round is exact: `a = sum d |w| / sum d`.

    Args:
        weight: real weights `w`.
        curvature: `d`, positive, shaped as the weight; those of Adam for the loss-aware methods, or ones.
        levels: what the `b` may be, as in `Codes`.
        scale: where `a` begins, positive; its shape is what shares one.
        rounds: number of both turns, 1 or more.

    Source: L. Hou, Q. Yao, J. T. Kwok, 2017, "Loss-aware Binarization of Deep Networks"; L. Hou, J. T. Kwok, 2018,
    "Loss-aware Weight Quantization of Deep Networks".

    Example:
        >>> from probq.codebooks import ternary
        >>> w = torch.tensor([0.9, -1.1, 0.1])
        >>> weighted_scale(w, torch.ones(3), ternary(), torch.tensor(0.5))
        (tensor(1.), tensor([ 1., -1.,  0.]))
    """
    check_number("rounds", rounds, 1)
    shape = scale.shape
    for _ in range(rounds):
        codes = nearest_level(weight / scale, levels)
        power = (curvature * codes.square()).sum_to_size(shape)
        found = (curvature * codes * weight).sum_to_size(shape) / torch.where(power > 0, power, 1)
        scale = torch.where((power > 0) & (found > 0), found, scale)
    return scale, nearest_level(weight / scale, levels)


def weighted_levels(weight: Tensor, curvature: Tensor, levels: Tensor, rounds: int = ROUNDS) -> Tensor:
    """Return ascending levels of less `sum d (l - w)^2`, by turns: the nearest level, then the mean of its members.

    Neither turn ever increases the sum. A level without members stays.

    Args:
        weight: real weights in units of their scale.
        curvature: `d`, positive, shaped as the weight.
        levels: where they begin, ascending, `[K]`.
        rounds: number of both turns, 1 or more.

    Source: S. P. Lloyd, 1982, "Least Squares Quantization in PCM"; D. Zhang, J. Yang, D. Ye, G. Hua, 2018, "LQ-Nets:
    Learned Quantization for Highly Accurate and Compact Deep Neural Networks" (levels and codes by turns).

    Example:
        >>> weighted_levels(torch.tensor([0.0, 1.0, 5.0, 7.0]), torch.ones(4), torch.tensor([0.0, 4.0]))
        tensor([0.5000, 6.0000])
    """
    check_number("rounds", rounds, 1)
    w, d = weight.reshape(-1), curvature.reshape(-1)
    for _ in range(rounds):
        codes = encode(w, levels)
        mass = torch.zeros_like(levels).index_add(0, codes, d)
        sums = torch.zeros_like(levels).index_add(0, codes, d * w)
        levels = torch.where(mass > 0, sums / torch.where(mass > 0, mass, 1), levels)
    return levels
