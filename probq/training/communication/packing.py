"""Codes of a few values are packed into bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(codes: Tensor, base: int) -> Tensor:
    """Return codes as bytes, as many in each byte as fit, the first one lowest.

    Args:
        codes: `[N]` integers from 0 to `base - 1`.
        base: number of values, 2 to 256.

    Returns:
        `[ceil(N / k)]` uint8, where `k` is the largest number with `base^k <= 256`.

    Example:
        >>> pack(torch.tensor([1, 0, 2, 1, 1, 2]), 3)
        tensor([127,   2], dtype=torch.uint8)
        >>> unpack(pack(torch.tensor([1, 0, 2, 1, 1, 2]), 3), 3, 6)
        tensor([1, 0, 2, 1, 1, 2])
    """
    each = per_byte(base)
    padded = torch.nn.functional.pad(codes.to(torch.int32), (0, -len(codes) % each)).reshape(-1, each)
    return (padded * _powers(base, codes.device)).sum(1).to(torch.uint8)


def unpack(data: Tensor, base: int, count: int) -> Tensor:
    """Return the first `count` codes of bytes, int64; the inverse of `pack`."""
    return (data.to(torch.int64).unsqueeze(1) // _powers(base, data.device) % base).reshape(-1)[:count]


def per_byte(base: int) -> int:
    """Return how many codes fit into a byte."""
    count = 1
    while base ** (count + 1) <= 256:
        count += 1
    return count


def _powers(base: int, device: torch.device) -> Tensor:
    return base ** torch.arange(per_byte(base), device=device)
