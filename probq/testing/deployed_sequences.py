"""These small networks read sequences, by recurrences or by attention, as deployed ones do."""

from __future__ import annotations

import math

import torch
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
