"""Vectors of length 1 are spelled out by a normalisation, and logarithms of sums of exponentials by a log-softmax."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Tensor:
    """Return `x / |x|` along an axis: by the root mean square, which is `sqrt(n)` times less than the length."""
    count, last = input.shape[dim], dim % input.dim() == input.dim() - 1
    rows = input if last else input.movedim(dim, -1)
    found = F.rms_norm(rows, [count], eps=eps**2 / count) * count**-0.5
    return found if last else found.movedim(-1, dim)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """Return the sum of the products of two vectors of length 1."""
    return (normalize(x1, dim=dim, eps=eps) * normalize(x2, dim=dim, eps=eps)).sum(dim)


def logsumexp(input: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """Return `log(sum(exp(x)))` along an axis: `x` less its log-softmax, which is the same for each number."""
    first, log = (x.narrow(dim, 0, 1) for x in (input, F.log_softmax(input, dim)))
    return first - log if keepdim else (first - log).squeeze(dim)
