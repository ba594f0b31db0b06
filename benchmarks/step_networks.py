"""Networks whose training steps are measured, beside those of `probq.testing`."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn


def resnet20() -> nn.Module:
    """Return ResNet-20 for images of 32x32 pixels (K. He et al., 2016, "Deep Residual Learning for Image Recognition").

    Its shortcuts are projections.
    """
    blocks, before = [], 16
    for after in (16, 16, 16, 32, 32, 32, 64, 64, 64):
        blocks.append(_Basic(before, after))
        before = after
    return nn.Sequential(*_normalised(3, 16, 3), nn.ReLU(), *blocks, *_head(64))


def inverted_residuals() -> nn.Module:
    """Return seven inverted residuals, expanded six times, for images of 32x32 pixels.

    Source: M. Sandler et al., 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks".
    """
    blocks, before = [], 16
    for after, stride in ((16, 1), (24, 2), (24, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        blocks.append(_Inverted(before, after, stride))
        before = after
    return nn.Sequential(*_normalised(3, 16, 3), nn.ReLU6(), *blocks, *_head(64))


def one_dimensional() -> nn.Module:
    """Return three convolutions of a signal of two channels."""
    layers: list[nn.Module] = []
    for before, after in ((2, 16), (16, 32), (32, 32)):
        layers += [nn.Conv1d(before, after, 5, 2, 2, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 10))


def jet_tagger() -> nn.Module:
    """Return the perceptron 16-64-32-32-5 of taggers of jets.

    Source: J. Duarte et al., 2018, "Fast inference of deep neural networks in FPGAs for particle physics".
    """
    sizes = (16, 64, 32, 32)
    hidden = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(32, 5))


class _Basic(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.body = nn.Sequential(*_normalised(before, after, 3, stride), nn.ReLU(), *_normalised(after, after, 3))
        self.short = nn.Identity() if stride == 1 else nn.Sequential(*_normalised(before, after, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.short(x))


class _Inverted(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        wide = 6 * before
        self.body = nn.Sequential(
            *_normalised(before, wide, 1), nn.ReLU6(),
            *_normalised(wide, wide, 3, stride, wide), nn.ReLU6(),
            *_normalised(wide, after, 1),
        )  # fmt: skip
        self.short = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.short else self.body(x)


def _normalised(before: int, after: int, size: int, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(after)


def _head(channels: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)
