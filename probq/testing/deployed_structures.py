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


def _tokens(mask: bool) -> dict[str, Any]:
    lengths = torch.arange(16) % 5 + 1
    seen = torch.arange(5) < lengths[:, None]
    example = {"pixels": torch.randn(16, 1, 8, 8), "tokens": torch.randint(0, 11, (16, 5))}
    return example | {"mask": seen if mask else None}


def _signals() -> tuple[Any, ...]:
    return {"near": torch.randn(16, 5), "far": 3 * torch.randn(16, 3)}, torch.randint(0, 4, (16,), dtype=torch.uint8)


STRUCTURES: tuple[tuple[str, Callable[[], nn.Module], Callable[[], Any]], ...] = (
    ("detector", Detector, lambda: torch.randn(16, 3, 12, 12)),
    ("two towers", Towers, lambda: _tokens(mask=False)),
    ("two towers, masked", Towers, lambda: _tokens(mask=True)),
    ("conditioned", Conditioned, _signals),
)


def deployed_structures() -> Iterator[tuple[str, nn.Module, Any]]:
    """Yield networks of several inputs or outputs, each with a name and an example, the same ones at every call.

    Example:
        >>> [name for name, net, example in deployed_structures()]
        ['detector', 'two towers', 'two towers, masked', 'conditioned']
    """
    for number, (name, make, example) in enumerate(STRUCTURES):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            yield name, make().eval(), example()
