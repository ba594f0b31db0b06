"""These small networks take several tensors, or return several: each is quantized, lowered and exported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from probq.testing.deployed_blocks import conv_norm


class Detections(NamedTuple):
    """These are what a detector says of each place of a map, at one scale.

    Attributes:
        boxes: `[batch, 4, height, width]`.
        classes: scores, `[batch, 3, height, width]`.
    """

    boxes: Tensor
    classes: Tensor


class Detector(nn.Module):
    """A detector has heads at two scales of a feature pyramid, whose coarse map is added to the fine one.

    Source: T.-Y. Lin et al., 2017, "Feature Pyramid Networks for Object Detection".
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(3, 6, 3, 2), nn.ReLU())
        self.down = nn.Sequential(*conv_norm(6, 8, 3, 2), nn.ReLU())
        self.side, self.top, self.up = nn.Conv2d(6, 6, 1), nn.Conv2d(8, 6, 1), nn.Upsample(scale_factor=2)
        self.boxes, self.classes = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> list[Detections]:
        """Return detections, fine ones first."""
        fine = self.stem(x)
        coarse = self.top(self.down(fine))
        merged = self.side(fine) + self.up(coarse)
        return [Detections(self.boxes(y), self.classes(y)) for y in (merged, coarse)]


class OneHead(nn.Module):
    """A detector has one head for all scales of a pyramid, in which each scale has a batch normalisation of its own.

    Source: P. Chen et al., 2021, "AQD: Towards Accurate Quantized Object Detection".
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(3, 6, 3, 2), nn.ReLU())
        self.down = nn.Sequential(*conv_norm(6, 6, 3, 2), nn.ReLU())
        self.tower = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(conv_norm(6, 6, 1)[1] for _ in range(2))
        self.boxes, self.classes = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> list[Detections]:
        """Return detections, fine ones first."""
        fine = self.stem(x)
        towers = [norm(self.tower(y)).relu() for norm, y in zip(self.norms, (fine, self.down(fine)), strict=True)]
        return [Detections(self.boxes(y), self.classes(y)) for y in towers]


class Towers(nn.Module):
    """Two towers, of pixels and of token ids, meet in a vector of scores; a mask leaves out tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(*conv_norm(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6))
        self.embed, self.text, self.score = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(12, 3)

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        """Return scores, and the vectors of both towers."""
        words = self.embed(tokens)
        if mask is not None:
            words = words * mask.to(words.dtype).unsqueeze(-1)
        image, text = self.image(pixels), self.text(words.sum(1)).relu()
        return {"scores": self.score(torch.cat([image, text], 1)), "towers": (image, text), "attentions": None}


class Conditioned(nn.Module):
    """A network of numbers takes two real tensors in a dictionary, and a kind of each example, given as an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far, self.kind = nn.Linear(5, 8), nn.Linear(3, 8), nn.Embedding(4, 8)
        self.mean, self.spread = nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, signals: dict[str, Tensor], kind: Tensor) -> tuple[Tensor, Tensor]:
        """Return means, and spreads above 0."""
        hidden = (self.near(signals["near"]) + self.far(signals["far"])).relu() + self.kind(kind.long())
        return self.mean(hidden), nn.functional.softplus(self.spread(hidden))


class Twins(nn.Module):
    """One network describes two images, and the distance of what it says of them is a score.

    Source: G. Koch et al., 2015, "Siamese Neural Networks for One-shot Image Recognition".
    """

    def __init__(self) -> None:
        super().__init__()
        self.describe = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 6))
        self.score = nn.Linear(6, 1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return a probability that both show the same."""
        return torch.sigmoid(self.score(torch.abs(self.describe(first) - self.describe(second))))


class Sequences(nn.Module):
    """A recurrence writes a sequence, and begins with the state in which another one has read its own.

    Source: I. Sutskever et al., 2014, "Sequence to Sequence Learning with Neural Networks".
    """

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(7, 3), nn.Linear(4, 7)
        self.read, self.write = nn.GRU(2, 4, batch_first=True), nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor, written: Tensor) -> Tensor:
        """Return scores of the next word at each place."""
        return self.out(self.write(self.words(written), self.read(x)[1])[0])


class Stream(nn.Module):
    """A stream is read in parts: the states of a recurrence are given, and returned; those of another are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.second = nn.LSTM(3, 4, batch_first=True), nn.GRU(4, 3, batch_first=True)
        self.first, self.out = nn.Parameter(torch.randn(1, 1, 3)), nn.Linear(3, 2)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return scores, and the states `[batch, width]` after the last step."""
        y, (h, c) = self.memory(x, (state[0][None], state[1][None]))
        y, _ = self.second(y, self.first.expand(-1, len(x), -1).contiguous())
        return self.out(y[:, -1]), (h[0], c[0])


class Layered(nn.Module):
    """The states of all layers and directions are given, and returned, as torch has them: the batch is second."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.out = nn.GRU(2, 3, 2, batch_first=True, bidirectional=True), nn.Linear(6, 2)

    def forward(self, x: Tensor, state: Tensor) -> dict[str, Tensor]:
        """Return scores, and the states `[layers, batch, features]` after the last step."""
        y, state = self.memory(x, state)
        return {"scores": self.out(y[:, -1]), "state": state}


class Masked(nn.Module):
    """Tokens see one another, but not what fills up short sentences; the largest score is a tag of each token.

    Source: J. Devlin et al., 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding".
    """

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.norm = nn.Embedding(11, 8), nn.Embedding(5, 8), nn.LayerNorm(8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.tags, self.classes = nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return scores of the sentence, and tags; token 0 fills up."""
        x = self.norm(self.words(tokens) + self.places(torch.arange(tokens.shape[1])))
        x = self.encoder(x, src_key_padding_mask=tokens == 0)
        pooled = x.masked_fill((tokens == 0).unsqueeze(-1), 0.0).sum(1)
        return {"classes": self.classes(pooled), "tags": self.tags(x).argmax(-1)}


class WideAndDeep(nn.Module):
    """Categories, columns of one tensor, are looked up in tables of their own, and stand beside real numbers.

    Source: H.-T. Cheng et al., 2016, "Wide & Deep Learning for Recommender Systems".
    """

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(rows, 3) for rows in (5, 9, 4)])
        self.deep, self.wide = nn.Sequential(nn.Linear(13, 8), nn.ReLU(), nn.Linear(8, 1)), nn.Linear(4, 1)

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        """Return a probability."""
        found = [table(categories[:, column]) for column, table in enumerate(self.tables)]
        return torch.sigmoid(self.deep(torch.cat([*found, numbers], 1)) + self.wide(numbers))


def _tokens(mask: bool) -> dict[str, Any]:
    lengths = torch.arange(16) % 5 + 1
    seen = torch.arange(5) < lengths[:, None]
    example = {"pixels": torch.randn(16, 1, 8, 8), "tokens": torch.randint(0, 11, (16, 5))}
    return example | {"mask": seen if mask else None}


def _signals() -> tuple[Any, ...]:
    return {"near": torch.randn(16, 5), "far": 3 * torch.randn(16, 3)}, torch.randint(0, 4, (16,), dtype=torch.uint8)


def _sentences() -> Tensor:
    return torch.randint(1, 11, (16, 5)) * (torch.arange(5) < (torch.arange(16) % 5 + 1)[:, None])


def _categories() -> tuple[Tensor, Tensor]:
    columns = [torch.randint(0, rows, (16,)) for rows in (5, 9, 4)]
    return torch.stack(columns, 1), torch.randn(16, 4)


STRUCTURES: tuple[tuple[str, Callable[[], nn.Module], Callable[[], Any]], ...] = (
    ("detector", Detector, lambda: torch.randn(16, 3, 12, 12)),
    ("two towers", Towers, lambda: _tokens(mask=False)),
    ("two towers, masked", Towers, lambda: _tokens(mask=True)),
    ("conditioned", Conditioned, _signals),
    ("siamese", Twins, lambda: (torch.randn(16, 1, 8, 8), torch.randn(16, 1, 8, 8))),
    ("sequence to sequence", Sequences, lambda: (torch.randn(16, 4, 2), torch.randint(0, 7, (16, 3)))),
    ("stream", Stream, lambda: (torch.randn(16, 4, 3), (torch.randn(16, 4), 2 * torch.randn(16, 4)))),
    ("stream, layers first", Layered, lambda: (torch.randn(16, 4, 2), 2 * torch.randn(4, 16, 3))),
    ("bert, masked", Masked, _sentences),
    ("wide and deep", WideAndDeep, _categories),
    ("detector, norms of its scales", OneHead, lambda: torch.randn(16, 3, 12, 12)),
)


def deployed_structures() -> Iterator[tuple[str, nn.Module, Any]]:
    """Yield networks of several inputs or outputs, each with a name and an example, the same ones at every call.

    Example:
        >>> [name for name, net, example in deployed_structures()][:4]
        ['detector', 'two towers', 'two towers, masked', 'conditioned']
    """
    for number, (name, make, example) in enumerate(STRUCTURES):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            yield name, make().eval(), example()
