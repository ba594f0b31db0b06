"""Images of another size are spelled out by one matrix for each axis, where places have weights of their own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Arguments of `F.interpolate` behind the image, in order.
RESAMPLED = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")


def interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """Return an image `[batch, channels, height, width]` of another size: `A x B'`, by matrices `[out, in]`."""
    sizes = size if isinstance(size, tuple | list) else [size] * 2
    factors = scale_factor if isinstance(scale_factor, tuple | list) else [scale_factor] * 2
    for axis, length, factor in zip((-2, -1), sizes, factors, strict=True):
        one = torch.eye(input.shape[axis], dtype=input.dtype, device=input.device)[None, :, :, None]
        found = F.interpolate(
            one,
            None if length is None else (length, 1),
            None if factor is None else (float(factor), 1.0),
            mode,
            align_corners,
            recompute_scale_factor,
        )
        matrix = found[0, :, :, 0].T
        input = matrix @ input if axis == -2 else input @ matrix.T
    return input


def has_own_weights(input: Tensor, **options: Any) -> bool:
    """Return whether places of a resampled image have weights that do not repeat with every place of the input."""
    mode, aligned = options.get("mode", "nearest"), bool(options.get("align_corners"))
    if mode not in ("bilinear", "bicubic") or input.dim() != 4 or options.get("antialias"):
        return False
    size, factor = options.get("size"), options.get("scale_factor")
    given = size if size is not None else factor
    pair = given if isinstance(given, tuple | list) else [given] * 2
    whole = all(
        float(one) == int(one) if size is None else int(one) % int(n) == 0
        for one, n in zip(pair, input.shape[2:], strict=True)
    )
    return mode == "bicubic" or aligned or not whole
