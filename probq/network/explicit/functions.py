"""A function that multiplies tensors inside is spelled out here by functions that `quantize` sees."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from probq.network.explicit.resampled import RESAMPLED, has_own_weights, interpolate
from probq.network.explicit.responses import local_response_norm
from probq.network.explicit.vectors import cosine_similarity, logsumexp, normalize


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """Return the first half times the sigmoid of the second."""
    value, gate = input.chunk(2, dim)
    return value * torch.sigmoid(gate)


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Return `softmax(query key' scale) value`, by default with `scale = 1 / sqrt(width)`, masked as torch does."""
    scores = (query @ key.transpose(-2, -1)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        seen = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if seen else scores + attn_mask
    weights = torch.softmax(scores, -1)
    return (F.dropout(weights, dropout_p) if dropout_p else weights) @ value


def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """Return `input + value tensor1 tensor2`."""
    product = tensor1 * tensor2
    return input + (product if value == 1 else product * value)


def lerp(input: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Return `input + weight (end - input)`."""
    return input + weight * (end - input)


def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Return `beta input + alpha mat1 mat2`."""
    product = mat1 @ mat2
    return (product if alpha == 1 else product * alpha) + (input if beta == 1 else input * beta)


def baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Return `beta input + alpha batch1 batch2`."""
    product = batch1 @ batch2
    return (input if beta == 1 else input * beta) + (product if alpha == 1 else product * alpha)


def einsum(equation: str, *operands: Any) -> Tensor:
    """Return an Einstein sum of two tensors as one product, of matrices where something is summed.

    Letters of both and of the output number matrices, those of both alone are summed over. Without the former the
    operand with the first letter of the output, which is the batch, comes first, and its axes stay apart.
    """
    first, second, out = letters(equation)
    x, y = operands[0] if len(operands) == 1 else operands
    if out[:1] in second and out[:1] not in first:
        first, second, x, y = second, first, y, x
    summed = [a for a in first if a in second and a not in out]
    if not summed:
        return _spread(x, first, out) * _spread(y, second, out)
    size = dict(zip(first + second, (*x.shape, *y.shape), strict=True))
    many = [a for a in first if a in second and a in out]
    rows, columns = [a for a in first if a not in second], [a for a in second if a not in first]
    counts = [math.prod(size[a] for a in axes) for axes in (rows, summed, columns)]
    lengths = [counts[0]] if many else [size[a] for a in rows]
    x = x.permute([first.index(a) for a in (*many, *rows, *summed)])
    x = x.reshape([*(size[a] for a in many), *lengths, counts[1]])
    y = y.permute([second.index(a) for a in (*many, *summed, *columns)])
    y = y.reshape([*(size[a] for a in many), *counts[1:]])
    found = (x @ y).reshape([size[a] for a in (*many, *rows, *columns)])
    return found.permute([(*many, *rows, *columns).index(a) for a in out])


def _spread(x: Tensor, axes: str, out: str) -> Tensor:
    """Return a tensor with its axes in the order of the output, those that it lacks of length 1."""
    x = x.permute([axes.index(a) for a in out if a in axes])
    for place, axis in enumerate(out):
        x = x if axis in axes else x.unsqueeze(place)
    return x


def letters(equation: str) -> tuple[str, str, str]:
    """Return the axes of both tensors and of the result; three empty ones where it is no product of two matrices."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    first, _, second = inputs.partition(",")
    if not arrow:
        out = "".join(sorted(a for a, n in Counter(first + second).items() if n == 1))
    once = all(len(set(axes)) == len(axes) and axes.isalpha() for axes in (first, second, out))
    known = set(first + second) == set(out) | (set(first) & set(second))
    return (first, second, out) if once and known else ("", "", "")


def embedding_bag(
    input: Tensor, weight: Tensor, offsets: None = None, max_norm: None = None, norm_type: float = 2,
    scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False, *rest: Any, **others: Any,
) -> Tensor:  # fmt: skip
    """Return sums or means of the rows of `weight` that each example names."""
    rows = F.embedding(input, weight)
    return rows.sum(1) if mode == "sum" else rows.mean(1)


def is_sum_of_rows(
    input: Tensor, weight: Tensor, offsets: Any = None, max_norm: Any = None, norm_type: float = 2,
    scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False, per_sample_weights: Any = None,
    include_last_offset: bool = False, padding_idx: Any = None,
) -> bool:  # fmt: skip
    """Return whether an embedding's bags are rows of a tensor `[batch, rows]`, summed or averaged."""
    plain = mode in ("sum", "mean") and padding_idx is None and per_sample_weights is None and max_norm is None
    return plain and input.dim() == 2 and offsets is None


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """Return `relu(x) - weight relu(-x)`, with a weight for each channel or one for all."""
    if weight.numel() > 1:
        weight = weight.reshape([-1] + [1] * (input.dim() - 2))
    return torch.relu(input) - torch.relu(-input) * weight


# Each with its number of tensors that depend on the network's input, at least.
EXPLICIT: Mapping[str, tuple[Callable[..., Tensor], int]] = MappingProxyType(
    {
        "glu": (glu, 1), "scaled_dot_product_attention": (attention, 1), "addcmul": (addcmul, 1), "lerp": (lerp, 2),
        "baddbmm": (baddbmm, 2), "addmm": (addmm, 1), "einsum": (einsum, 1), "prelu": (prelu, 1),
        "normalize": (normalize, 1), "cosine_similarity": (cosine_similarity, 1), "interpolate": (interpolate, 1),
        "embedding_bag": (embedding_bag, 1), "local_response_norm": (local_response_norm, 1),
        "logsumexp": (logsumexp, 1),
    }
)  # fmt: skip


def is_spelled_out(kind: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether what is called with these arguments computes what is written here."""
    if kind == "einsum":
        return bool(args) and isinstance(args[0], str) and bool(letters(args[0])[0]) and not kwargs
    if kind == "scaled_dot_product_attention":
        return len(args) >= 3 and not kwargs.get("enable_gqa")
    if kind == "interpolate":
        return has_own_weights(*args[:1], **(dict(zip(RESAMPLED, args[1:], strict=False)) | dict(kwargs)))
    if kind == "normalize":
        given = dict(zip(("p", "dim"), args[1:], strict=False)) | dict(kwargs)
        dim = given.get("dim", 1)
        return given.get("p", 2) == 2 and isinstance(dim, int) and dim % args[0].dim() > 0 and given.get("out") is None
    if kind == "logsumexp":
        given = dict(zip(("dim", "keepdim"), args[1:], strict=False)) | dict(kwargs)
        return isinstance(given.get("dim"), int) and given["dim"] % args[0].dim() > 0 and given.get("out") is None
    if kind == "embedding_bag":
        return is_sum_of_rows(*args, **kwargs)
    return "out" not in kwargs
