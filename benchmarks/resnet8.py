"""ResNet-8 for 32x32 images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions beside an identity, or beside a 1x1 convolution where the size changes."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.beside = nn.Sequential()
        if stride != 1 or before != channels:
            self.beside = nn.Sequential(nn.Conv2d(before, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both branches, rectified."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.beside(x))


class ResNet8(nn.Module):
    """A 3x3 convolution, three blocks of w, 2w and 4w channels (the last two halve the image), mean, linear layer.

    Args:
        width: channels `w` of the first block. 16 is the network of C. Banbury et al., 2021, "MLPerf Tiny Benchmark".
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.block1 = Block(width, width, 1)
        self.block2 = Block(width, 2 * width, 2)
        self.block3 = Block(2 * width, 4 * width, 2)
        self.linear = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = torch.relu(self.norm(self.conv(x)))
        return self.linear(self.block3(self.block2(self.block1(x))).mean((2, 3)))
