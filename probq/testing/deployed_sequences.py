"""These small networks read sequences, by recurrences or by attention, as deployed ones do."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Causal(nn.Module):
    """This block has attention of each place to those before it, written by hand, and adds what it finds.

    Source: A. Radford et al., 2018, "Improving Language Understanding by Generative Pre-Training".
    """

    def __init__(self, width: int, heads: int, places: int) -> None:
        super().__init__()
        self.inner, self.outer, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads
        self.norm = nn.LayerNorm(width)
        self.mask: Tensor
        self.register_buffer("mask", torch.ones(places, places).tril().bool())

    def forward(self, x: Tensor) -> Tensor:
        """Return features `[batch, places, width]`."""
        batch, places, width = x.shape
        shape = (batch, places, self.heads, width // self.heads)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in self.inner(self.norm(x)).chunk(3, -1))
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(width // self.heads)
        weights = scores.masked_fill(~self.mask, float("-inf")).softmax(-1)
        return x + self.outer((weights @ v).transpose(1, 2).reshape(batch, places, width))


class Translator(nn.Module):
    """This network has an encoder of torch's, and a causal decoder layer that reads its outputs and the last places."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.embed, self.out, self.places = nn.Linear(4, 8), nn.Linear(8, 3), places
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 1, enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoderLayer(8, 2, 12, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores of the last places."""
        x = self.embed(x)
        mask = nn.Transformer.generate_square_subsequent_mask(self.places)
        memory = self.encoder(x, mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1]))
        return self.out(self.decoder(x[:, -self.places :], memory, tgt_mask=mask))


class LastOutput(nn.Module):
    """This network has a recurrent module, and a linear layer behind its outputs at the last time step.

    Args:
        recurrent: with the batch first.
        width: numbers of its outputs.
        every: whether the linear layer reads the outputs of every time step instead.
    """

    def __init__(self, recurrent: nn.Module, width: int, every: bool = False) -> None:
        super().__init__()
        self.recurrent, self.out, self.every = recurrent, nn.Linear(width, 3), every

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        y = self.recurrent(x)[0]
        return self.out(y if self.every else y[:, -1])


class Dilated(nn.Module):
    """Convolutions that look back only, each wider than the one before it, are added to what they read.

    Source: S. Bai et al., 2018, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence
    Modeling".
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        made = [nn.Conv1d(a, channels, 3, padding=2 * d, dilation=d) for a, d in ((2, 1), (channels, 2))]
        self.layers = nn.ModuleList([nn.utils.parametrizations.weight_norm(layer) for layer in made])
        self.first, self.out = nn.Conv1d(2, channels, 1), nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores of the last time step."""
        short = self.first(x)
        for layer, ahead in zip(self.layers, (2, 4), strict=True):
            x = F.relu(short + F.relu(layer(x)[:, :, :-ahead]))
            short = x
        return self.out(x[:, :, -1])


class Conformer(nn.Module):
    """Half a perceptron, attention, a gated convolution over time and half a perceptron are added, one by one.

    Source: A. Gulati et al., 2020, "Conformer: Convolution-augmented Transformer for Speech Recognition".
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.halves = nn.ModuleList(
            [nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 12), nn.SiLU(), nn.Linear(12, width)) for _ in "ab"]
        )
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.attention, self.out = nn.MultiheadAttention(width, 2, batch_first=True), nn.Linear(width, 3)
        self.gated, self.last = nn.Conv1d(width, 2 * width, 1), nn.Conv1d(width, width, 1)
        self.mix = nn.Sequential(nn.Conv1d(width, width, 3, padding=1, groups=width), nn.BatchNorm1d(width), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        x = x + 0.5 * self.halves[0](x)
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = F.glu(self.gated(self.norms[1](x).transpose(1, 2)), 1)
        x = x + self.last(self.mix(y)).transpose(1, 2)
        return self.out(self.norms[2](x + 0.5 * self.halves[1](x)).mean(1))


class Rotary(nn.Module):
    """Queries and keys are turned by how far they stand behind, and two heads of queries share one of keys and values.

    Source: H. Touvron et al., 2023, "LLaMA: Open and Efficient Foundation Language Models"; J. Ainslie et al., 2023,
    "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints".
    """

    def __init__(self, places: int) -> None:
        super().__init__()
        self.norm, self.query, self.out = nn.RMSNorm(8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)
        self.key, self.value = nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False)
        self.gate, self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        angles = torch.outer(torch.arange(float(places)), 10000.0 ** (-torch.arange(0, 4, 2) / 4)).repeat(1, 2)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores of the last place."""
        batch, places, _ = x.shape
        y = self.norm(x)
        q, k, v = (f(y).view(batch, places, -1, 4).transpose(1, 2) for f in (self.query, self.key, self.value))
        k, v = (self._turned(k).repeat_interleave(2, 1), v.repeat_interleave(2, 1))
        found = F.scaled_dot_product_attention(self._turned(q), k, v, is_causal=True).transpose(1, 2)
        x = x + found.reshape(batch, places, 8)
        return self.out((x + self.down(F.silu(self.gate(x)) * self.up(x)))[:, -1])

    def _turned(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin


class Reader(nn.Module):
    """Columns of an image that convolutions describe are read by a recurrence in both directions.

    Source: B. Shi et al., 2015, "An End-to-End Trainable Neural Network for Image-based Sequence Recognition".
    """

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d((4, 2)))
        self.read, self.out = nn.GRU(6, 3, batch_first=True, bidirectional=True), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logarithms of probabilities of characters at each column."""
        columns = self.look(x).permute(0, 3, 1, 2).flatten(2)
        return self.out(self.read(columns)[0]).log_softmax(-1)


class Spelled(nn.Module):
    """Normalisations are spelled out: by the mean square before a perceptron, by mean and variance behind it.

    Source: B. Zhang and R. Sennrich, 2019, "Root Mean Square Layer Normalization"; J. Ba et al., 2016, "Layer
    Normalization".
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain, self.scale = (nn.Parameter(0.8 + 0.5 * torch.randn(width)) for _ in range(2))
        self.shift = nn.Parameter(0.3 * torch.randn(width))
        self.inner, self.outer, self.out = nn.Linear(width, 12), nn.Linear(12, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores of each place."""
        y = self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        x = x + self.outer(F.gelu(self.inner(y)))
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return self.out(self.scale * ((x - mean) / torch.sqrt(variance + 1e-5)) + self.shift)


class Switched(nn.Module):
    """For each example and number, a gate decides which of two perceptrons counts.

    Source: R. Jacobs et al., 1991, "Adaptive Mixtures of Local Experts", with a hard choice.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.left, self.right = (nn.Linear(6, width) for _ in range(3))
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        y = torch.where(self.gate(x) > 0, F.relu(self.left(x)), torch.tanh(self.right(x)))
        return self.out(y)
