"""These blocks of deployed networks are for images, volumes and clouds of points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from probq.testing.deployed_blocks import conv_norm, head


class AttentionGate(nn.Module):
    """A coarse map is upsampled, and says by a gate what of the fine one is taken over.

    Source: O. Oktay et al., 2018, "Attention U-Net: Learning Where to Look for the Pancreas".
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fine, self.coarse = (nn.Sequential(*conv_norm(a, channels), nn.ReLU(True)) for a in (1, channels))
        self.up, self.last = nn.ConvTranspose2d(channels, channels, 2, 2), nn.Conv2d(2 * channels, 2, 1)
        self.gates = nn.ModuleList([nn.Sequential(*conv_norm(channels, 2, 1)) for _ in range(2)])
        self.chosen = nn.Sequential(*conv_norm(2, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of scores."""
        fine = self.fine(x)
        up = self.up(self.coarse(F.max_pool2d(fine, 2)))
        gate = self.chosen(F.relu(self.gates[0](up) + self.gates[1](fine)))
        return self.last(torch.cat([fine * gate, up], 1))


class Mixer(nn.Module):
    """Perceptrons are applied to the places of an image, then to the numbers of each place.

    Source: I. Tolstikhin et al., 2021, "MLP-Mixer: An all-MLP Architecture for Vision".
    """

    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.patches, self.out = nn.Conv2d(3, width, 4, 4), nn.Linear(width, 3)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.places, self.numbers = (
            nn.Sequential(nn.Linear(n, 6), nn.GELU(), nn.Linear(6, n)) for n in (places, width)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = y + self.places(self.norms[0](y).transpose(1, 2)).transpose(1, 2)
        y = y + self.numbers(self.norms[1](y))
        return self.out(self.norms[2](y).mean(1))


class SpatialGate(nn.Module):
    """Half of the numbers of each place is multiplied with the other half, which is mixed over places before.

    Source: H. Liu et al., 2021, "Pay Attention to MLPs".
    """

    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.wide, self.narrow, self.mix = nn.Linear(width, 12), nn.Linear(6, width), nn.Conv1d(places, places, 1)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(6)])

    def forward(self, x: Tensor) -> Tensor:
        """Return features `[batch, places, width]`."""
        value, gate = F.gelu(self.wide(self.norms[0](x))).chunk(2, -1)
        return x + self.narrow(value * self.mix(self.norms[1](gate)))


class Modern(nn.Module):
    """A wide convolution of each channel, a normalisation over channels, and a perceptron at each place are added.

    Source: Z. Liu et al., 2022, "A ConvNet for the 2020s".
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix, self.norm = nn.Conv2d(channels, channels, 5, padding=2, groups=channels), nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.gamma = nn.Parameter(0.2 + torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        y = self.norm(self.mix(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.narrow(F.gelu(self.wide(y)))).permute(0, 3, 1, 2)


class Inverted(nn.Module):
    """This inverted residual has squeeze-and-excitation by convolutions, and swish everywhere.

    Source: M. Tan and Q. Le, 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks".
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.expand, self.mix = (
            nn.Sequential(*conv_norm(channels, wide, 1)),
            nn.Sequential(*conv_norm(wide, wide, groups=wide)),
        )
        self.squeeze, self.excite = nn.Conv2d(wide, 2, 1), nn.Conv2d(2, wide, 1)
        self.project = nn.Sequential(*conv_norm(wide, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        y = F.silu(self.mix(F.silu(self.expand(x))))
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return x + self.project(gate * y)


class Shuffled(nn.Module):
    """Half of the channels pass through convolutions, and all are dealt out anew.

    Source: N. Ma et al., 2018, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design".
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.body = nn.Sequential(
            *conv_norm(half, half, 1), nn.ReLU(True), *conv_norm(half, half, groups=half), *conv_norm(half, half, 1),
            nn.ReLU(True),
        )  # fmt: skip
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        left, right = x.chunk(2, 1)
        return self.shuffle(torch.cat([left, self.body(right)], 1))


class Windows(nn.Module):
    """Attention within windows of an image that was rolled, with a learned addend for each distance of two places.

    Source: Z. Liu et al., 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows".
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.biases = nn.Parameter(0.5 * torch.randn(9))
        places = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        apart = (places[:, :, None] - places[:, None, :]) + 1
        self.apart: Tensor
        self.register_buffer("apart", (3 * apart[0] + apart[1]).flatten())

    def forward(self, x: Tensor) -> Tensor:
        """Return features `[batch, 4, 4, width]`."""
        width = x.shape[-1]
        y = torch.roll(self.norm(x), (-1, -1), (1, 2)).view(-1, 2, 2, 2, 2, width)
        q, k, v = self.inner(y.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, width)).chunk(3, -1)
        scores = q @ k.transpose(-2, -1) * width**-0.5 + self.biases[self.apart].view(4, 4)
        y = self.outer(scores.softmax(-1) @ v).view(-1, 2, 2, 2, 2, width)
        return x + torch.roll(y.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, width), (1, 1), (1, 2))


class Points(nn.Module):
    """A cloud of points is turned by a matrix that is computed from it, and its largest features tell what it is.

    Source: C. Qi et al., 2017, "PointNet: Deep Learning on Point Sets for 3D Classification and Segmentation".
    """

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6), nn.ReLU())
        self.turn, self.out = nn.Linear(6, 9), nn.Linear(8, 4)
        self.features = nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Return logarithms of probabilities."""
        turn = self.turn(torch.max(self.look(x), 2)[0]).view(-1, 3, 3) + torch.eye(3)
        turned = torch.bmm(x.transpose(2, 1), turn).transpose(2, 1)
        return F.log_softmax(self.out(torch.max(self.features(turned), 2)[0]), 1)


def modern() -> nn.Sequential:
    """Return a network of one such block."""
    return nn.Sequential(nn.Conv2d(3, 6, 2, 2), Modern(6), nn.BatchNorm2d(6), *head(6))


def efficient() -> nn.Sequential:
    """Return a network with such a residual."""
    return nn.Sequential(*conv_norm(3, 4, 3, 2), nn.SiLU(), Inverted(4), *head(4))


def shuffled() -> nn.Sequential:
    """Return a network of two such blocks."""
    return nn.Sequential(*conv_norm(3, 8, 3, 2), nn.ReLU(), Shuffled(8), Shuffled(8), *head(8))


def windows() -> nn.Sequential:
    """Return a network with such attention."""
    return nn.Sequential(nn.Linear(3, 4), Windows(4), nn.LayerNorm(4), nn.Flatten(), nn.Linear(64, 3))


def spatial_gate() -> nn.Sequential:
    """Return a network with such a gate."""
    return nn.Sequential(nn.Linear(3, 6), SpatialGate(6, 5), nn.Flatten(), nn.Linear(30, 3))


def video() -> nn.Sequential:
    """Return a network that reads films."""
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d((1, 2, 2)),
        nn.Conv3d(4, 4, (3, 1, 1)), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
