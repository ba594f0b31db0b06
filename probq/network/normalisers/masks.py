"""Masks hide scores from a softmax: what they add is 0, or so small that nothing is left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MASKED = -1e4  # what masks add at most: far below the least argument of a softmax, -2^11


def is_mask(constant: Any) -> bool:
    """Return whether a tensor that is added leaves scores as they are, or takes them beyond what a softmax knows."""
    if not isinstance(constant, Tensor) or not constant.is_floating_point() or constant.requires_grad:
        return False
    return bool(((constant == 0) | (constant <= MASKED)).all() and (constant != 0).any())


def is_truth(x: Tensor) -> bool:
    """Return whether a tensor holds 0 and 1 alone."""
    return bool(((x == 0) | (x == 1)).all())


def holds_numbers(tensor: Tensor) -> bool:
    """Return whether all that a tensor holds is finite, or it is a mask of zeros and minus infinity."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.isfinite().all():
        return True
    return tensor.is_floating_point() and bool(((tensor == 0) | (tensor == -torch.inf)).all() and (tensor == 0).any())
