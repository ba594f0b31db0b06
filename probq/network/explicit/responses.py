"""Local response normalisation is spelled out by a quotient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """Return `x / (k + alpha mean(x^2))^beta`, with the mean over `size` neighbouring channels, those beyond being 0.

    Source: A. Krizhevsky, I. Sutskever and G. Hinton, 2012, "ImageNet Classification with Deep Convolutional Neural
    Networks".
    """
    squares = F.pad((input * input).flatten(2).unsqueeze(1), (0, 0, size // 2, (size - 1) // 2))
    mean = F.avg_pool2d(squares, (size, 1), stride=1).reshape(input.shape)
    return input / torch.pow(mean * alpha + k, beta)
