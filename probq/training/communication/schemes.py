"""These are ways to round a gradient that is sent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probq.training.communication.compression import Compression
from probq.utils.arguments import is_count
from probq.utils.errors import ProbqError


def qsgd(bits: int = 4, chunk: int = 512, group: Any = None) -> Compression:
    """Return the rounding of QSGD, which is unbiased: with `s = 2^(bits - 1) - 1`, a number `v` of a chunk becomes

        ||chunk|| sign(v) k / s,    k = floor(s |v| / ||chunk|| + u),    u uniform on [0, 1).

    Args:
        bits: of a number, 2 to 8; as many numbers go into a byte as have room.
        chunk: how many numbers share a Euclidean norm, which has 4 bytes.
        group: of processes; None: all.

    Raises:
        ProbqError: if an option is not in its range.

    Source: D. Alistarh, D. Grubic, J. Li, R. Tomioka, M. Vojnovic, 2017, "QSGD: Communication-Efficient SGD via
    Gradient Quantization and Encoding".

    Example:
        >>> compression = qsgd(4, chunk=512)
        >>> compression.bytes_of(1024)
        520
    """
    if not is_count(bits, 2) or bits > 8:
        raise ProbqError(f"qsgd(bits) takes 2 to 8 bits, not {bits!r}")
    if not is_count(chunk, 1):
        raise ProbqError(f"chunk is how many numbers share a norm, 1 or more, not {chunk!r}")
    return _QSGD(2 ** (bits - 1) - 1, chunk, group)


def ternary(group: Any = None) -> Compression:
    """Return the rounding of TernGrad, which is unbiased: of a bucket with the largest size `m`, `v` becomes

        m sign(v) b,    b = 1 with probability |v| / m, else 0.

    Five numbers go into a byte.

    Args:
        group: of processes; None: all.

    Source: W. Wen, C. Xu, F. Yan, C. Wu, Y. Wang, Y. Chen, H. Li, 2017, "TernGrad: Ternary Gradients to Reduce
    Communication in Distributed Deep Learning".

    Example:
        >>> ternary().bytes_of(1000)
        204
    """
    return _Ternary(3, None, group)


def sign(group: Any = None) -> Compression:
    """Return signs with error feedback: with what was left out before, `p = g + e`, a bucket of `d` numbers becomes

        ||p||_1 / d sign(p),    e <- p - that.

    Signs alone are biased, and can lead astray; what is left out is added to the next gradient, so that nothing is
    lost. Eight numbers go into a byte.

    Args:
        group: of processes; None: all.

    Source: S. P. Karimireddy, Q. Rebjock, S. U. Stich, M. Jaggi, 2019, "Error Feedback Fixes SignSGD and other Gradient
    Compression Schemes"; J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar, 2018, "signSGD: Compressed
    Optimisation for Non-Convex Problems".

    Example:
        >>> sign().bytes_of(1000)
        129
    """
    return _Sign(2, None, group, feedback=True)


class _QSGD(Compression):
    def __init__(self, levels: int, chunk: int | None, group: Any) -> None:
        super().__init__(2 * levels + 1, chunk, group)
        self.levels = levels

    def scales(self, parts: Tensor) -> Tensor:
        return parts.norm(dim=1, keepdim=True)

    def codes(self, parts: Tensor) -> Tensor:
        size = (parts.abs() * self.levels + torch.rand_like(parts)).floor().clamp(0, self.levels)
        return (size * parts.sign()).nan_to_num().long() + self.levels

    def values(self, codes: Tensor) -> Tensor:
        return (codes - self.levels).float() / self.levels


class _Ternary(_QSGD):
    def __init__(self, base: int, chunk: int | None, group: Any) -> None:
        super().__init__((base - 1) // 2, chunk, group)

    def scales(self, parts: Tensor) -> Tensor:
        return parts.abs().amax(1, keepdim=True)


class _Sign(Compression):
    def scales(self, parts: Tensor) -> Tensor:
        return parts.abs().mean(1, keepdim=True)

    def codes(self, parts: Tensor) -> Tensor:
        return (parts >= 0).long()

    def values(self, codes: Tensor) -> Tensor:
        return codes.float() * 2 - 1
