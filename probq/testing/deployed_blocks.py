"""These blocks of deployed networks have batch normalisation elsewhere than behind a convolution of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm(before: int, after: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution and its batch normalisation."""
    padding = kernel // 2
    return [nn.Conv2d(before, after, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(after)]


def head(channels: int) -> list[nn.Module]:
    """Return what averages an image and scores classes."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, 5)]


class PreActivation(nn.Module):
    """This residual block computes normalisation and clip before its convolutions.

    Source: K. He et al., 2016, "Identity Mappings in Deep Residual Networks".
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm, (self.first, self.second) = nn.BatchNorm2d(before), conv_norm(before, after, 3, stride)
        self.last = nn.Conv2d(after, after, 3, padding=1, bias=False)
        same = stride == 1 and before == after
        self.shortcut = None if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        y = F.relu(self.norm(x))
        short = x if self.shortcut is None else self.shortcut(y)
        return short + self.last(F.relu(self.second(self.first(y))))


class DenseBlock(nn.Module):
    """New features stand beside all earlier ones, and a normalisation reads them all.

    Source: G. Huang et al., 2017, "Densely Connected Convolutional Networks".
    """

    def __init__(self, before: int, more: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(before), nn.Conv2d(before, more, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features, the new ones last."""
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class Reparametrized(nn.Module):
    """In training, the block has branches of 3x3, 1x1 and the identity, each with a normalisation.

    Source: X. Ding et al., 2021, "RepVGG: Making VGG-style ConvNets Great Again".
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide, self.narrow = (nn.Sequential(*conv_norm(channels, channels, kernel)) for kernel in (3, 1))
        self.same = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        return F.relu(self.wide(x) + self.narrow(x) + self.same(x))


class Scaled(nn.Module):
    """This block computes a branch times a learned factor for each channel, and times a number.

    Source: H. Touvron et al., 2021, "Going Deeper with Image Transformers".
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Sequential(*conv_norm(channels, channels, groups=channels))
        self.wide, self.narrow = nn.Conv2d(channels, 2 * channels, 1), nn.Conv2d(2 * channels, channels, 1)
        self.gamma = nn.Parameter(0.1 + torch.rand(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        return x + 0.9 * (self.gamma * self.narrow(F.relu(self.wide(self.mix(x)))))


class Placed(nn.Module):
    """Images are normalised inside, and every place of the features has a learned addend.

    Source: A. Dosovitskiy et al., 2021, "An Image is Worth 16x16 Words".
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1))
        self.patches = nn.Conv2d(3, channels, 2, 2)
        self.places = nn.Parameter(0.3 * torch.randn(1, channels, size, size))

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        return self.patches((x - self.mean) / self.std) + self.places


class ChannelNorm(nn.Module):
    """This normalisation is over channels, at each place of an image by itself, and calls a function for it.

    Source: Z. Liu et al., 2022, "A ConvNet for the 2020s".
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return y.permute(0, 3, 1, 2)


class Selective(nn.Module):
    """This block has a softmax over the channels of each place, and one over the places of each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, channels, 2, 2), ChannelNorm(channels)
        self.mix, self.last = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map for each class that adds to 1."""
        y = self.norm(self.patches(x))
        return self.last(y + F.softmax(self.mix(F.relu(y)), 1)).flatten(2).softmax(dim=-1)


class SqueezeExcitation(nn.Module):
    """Every channel is multiplied by what the averages of all of them say.

    Source: J. Hu et al., 2018, "Squeeze-and-Excitation Networks".
    """

    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, narrow), nn.Linear(narrow, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class Gated(nn.Module):
    """A dilated convolution is multiplied by the gate of another one, and added; then halves gate one another.

    Source: A. van den Oord et al., 2016, "WaveNet: A Generative Model for Raw Audio"; Y. Dauphin et al., 2017,
    "Language Modeling with Gated Convolutional Networks".
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        convolution = (channels, channels, 3, 1, dilation, dilation)
        self.value, self.gate = nn.Conv1d(*convolution), nn.Conv1d(*convolution)
        self.both = nn.Conv1d(channels, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        x = x + torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x))
        value, gate = self.both(x).chunk(2, 1)
        return value * gate.sigmoid()


class Attentive(nn.Module):
    """Every place takes the values of places that its scores choose, clipped at 0 instead of normalised.

    Source: M. Wortsman et al., 2023, "Replacing softmax with ReLU in Vision Transformers".
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inner, self.outer, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        """Return features `[batch, places, width]`."""
        batch, places, width = x.shape
        shape = (batch, places, self.heads, width // self.heads)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in self.inner(x).chunk(3, -1))
        scores = F.relu(q @ k.transpose(-2, -1)) * (0.5 / places)
        return x + self.outer(torch.matmul(scores, v).transpose(1, 2).reshape(batch, places, width))


class Encoder(nn.Module):
    """This block has attention with a softmax, then a gated perceptron, each added to what it reads normalised.

    Source: A. Vaswani et al., 2017, "Attention Is All You Need"; N. Shazeer, 2020, "GLU Variants Improve Transformer".
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inner, self.outer, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return features `[batch, places, width]`."""
        batch, places, width = x.shape
        shape = (batch, places, self.heads, width // self.heads)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in self.inner(self.norms[0](x)).chunk(3, -1))
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.outer(found.reshape(batch, places, width))
        return x + self.narrow(F.glu(self.wide(self.norms[1](x))))


class Hourglass(nn.Module):
    """Images are normalised inside, made coarse, and upsampled linearly beside what they were; slopes are learned.

    Source: O. Ronneberger et al., 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation"; S. Woo et
    al., 2018, "CBAM: Convolutional Block Attention Module".
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.stem, self.slopes = nn.BatchNorm2d(1), nn.Conv2d(1, channels, 3), nn.PReLU(channels)
        self.pad, self.coarse = nn.ReflectionPad2d(1), nn.Sequential(*conv_norm(channels, channels))
        self.gate, self.last = nn.Conv2d(2, 1, 3, padding=1), nn.Conv2d(2 * channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return images."""
        y = self.slopes(self.stem(self.pad(self.norm(x))))
        gate = torch.cat([y.mean(1, keepdim=True), y.max(1, keepdim=True).values], 1)
        y = y * torch.sigmoid(self.gate(gate))
        coarse = self.coarse(F.adaptive_max_pool2d(y, (6, 6)) - F.adaptive_avg_pool2d(y, (6, 6))).clamp(-0.7, 0.9)
        return x - self.last(torch.cat([y, F.interpolate(coarse, scale_factor=2, mode="bilinear")], 1))


class Classified(nn.Module):
    """A class token stands before the places of an image, which pass a layer of torch's with the sequence first.

    Source: A. Dosovitskiy et al., 2021, "An Image is Worth 16x16 Words".
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, width, size, size), nn.Parameter(torch.randn(1, 1, width))
        self.places, self.head = nn.Embedding(10, width), nn.Linear(width, 3)
        self.layer = nn.TransformerEncoderLayer(width, 2, 12, activation="gelu", norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        y = self.patches(x).flatten(2).permute(2, 0, 1)
        y = torch.cat([self.token.expand(-1, y.shape[1], -1), y])
        return self.head(self.layer(y + self.places(torch.arange(len(y)))[:, None])[0])
