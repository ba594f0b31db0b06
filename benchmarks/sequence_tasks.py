"""Small networks with their data and scores: two language models, rows of digits, detectors, finer images.

All data is made from what Python and scikit-learn ship: the topics of Python's own help, the 8x8 digits, and the two
photographs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pydoc_data.topics import topics
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn

from probq.likelihoods import Categorical, Normal, PerOutput

CHARACTERS = " abcdefghijklmnopqrstuvwxyz.,()'"
PLACES = 16  # characters that a language model reads
ABSENT = -100.0  # a box's number where there is no object
SIDE = 24  # pixels of an image with digits
STRIDES = (4, 8)  # pixels of a cell, at both scales of the detector

Targets = list[dict[str, Tensor]]
Parts = tuple[tuple[Any, Any], ...]  # inputs and targets for training, held out, and of the test


class Transformer(nn.Module):
    """A block of causal attention, of torch's own modules, predicts each next character."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(len(CHARACTERS), 32), nn.Parameter(0.1 * torch.randn(PLACES, 32))
        self.block = nn.TransformerEncoderLayer(32, 2, 64, dropout=0, batch_first=True, norm_first=True)
        self.norm, self.out = nn.LayerNorm(32), nn.Linear(32, len(CHARACTERS))
        self.mask: Tensor
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(PLACES))

    def forward(self, text: Tensor) -> Tensor:
        """Scores `[batch, places, characters]`."""
        return self.out(self.norm(self.block(self.embed(text) + self.places, src_mask=self.mask)))


class Memory(nn.Module):
    """An LSTM predicts each next character."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(len(CHARACTERS), 16), nn.LSTM(16, 32, batch_first=True)
        self.out = nn.Linear(32, len(CHARACTERS))

    def forward(self, text: Tensor) -> Tensor:
        """Scores `[batch, places, characters]`."""
        return self.out(self.lstm(self.embed(text))[0])


class Rows(nn.Module):
    """A GRU reads a digit row by row, as a keyword is heard frame by frame, and names it at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(8, 24, batch_first=True), nn.Linear(24, 10)

    def forward(self, rows: Tensor) -> Tensor:
        """Class scores."""
        return self.out(self.gru(rows)[0][:, -1])


def reduced(before: int, after: int) -> nn.Sequential:
    """A convolution with its normalisation, clipped, and maxima of 2x2."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)
    )


class Head(nn.Module):
    """What a detector says of the cells of one scale."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.classes, self.boxes = nn.Conv2d(24, 11, 1), nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Class scores `[batch, 11, h, w]`, nothing first, and boxes `[batch, 4, h, w]`."""
        y = self.tower(x)
        return {"classes": self.classes(y), "boxes": self.boxes(y)}


class SharedHead(nn.Module):
    """One head for all scales; each of them has a normalisation of its own, or all have one.

    Source: P. Chen et al., 2021, "AQD: Towards Accurate Quantized Object Detection".
    """

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.tower = nn.Conv2d(24, 24, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(24) for _ in range(norms))
        self.classes, self.boxes = nn.Conv2d(24, 11, 1), nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor, scale: int) -> dict[str, Tensor]:
        """What `Head` says, of the cells of one scale."""
        y = self.norms[scale % len(self.norms)](self.tower(x)).relu()
        return {"classes": self.classes(y), "boxes": self.boxes(y)}


class Pyramid(nn.Module):
    """Features at two scales, the coarse ones added to the fine ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Sequential(reduced(1, 8), reduced(8, 16)), reduced(16, 24)
        self.side, self.top, self.up = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 24, 1), nn.Upsample(scale_factor=2)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of 24 channels each, fine ones first."""
        fine = self.stem(x)
        coarse = self.top(self.down(fine))
        return (self.side(fine) + self.up(coarse)).relu(), coarse.relu()


class Detector(Pyramid):
    """Heads at two scales of a feature pyramid say which digit has its centre in a cell, and where its box is."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = Head(), Head()

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        """What both heads say, of small objects first."""
        fine, coarse = self.features(x)
        return [self.small(fine), self.large(coarse)]


class OneHead(Pyramid):
    """The detector with one head for both scales."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.head = SharedHead(norms)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        """What the head says, of small objects first."""
        return [self.head(y, scale) for scale, y in enumerate(self.features(x))]


class Finer(nn.Module):
    """Three convolutions and a pixel shuffle say what repeated pixels of an image of twice the size have missed.

    Source: Z. Du et al., 2021, "Anchor-based Plain Net for Mobile Image Super-Resolution".
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 4, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Images of twice the size."""
        return self.body(x) + F.interpolate(x, scale_factor=2)


class Boxes(torch.distributions.Normal):
    """The law of boxes, which are observed where there is an object."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Of every number, 0 where there is no object."""
        return super().log_prob(value).masked_fill(value == ABSENT, 0.0)


def text() -> Tensor:
    """Python's help as numbers of characters, in lower case, what has no number as one space."""
    words = re.sub(f"[^{re.escape(CHARACTERS[1:])}]+", " ", " ".join(topics[key] for key in sorted(topics)).lower())
    return torch.tensor([CHARACTERS.index(character) for character in words])


def windows(seed: int) -> Parts:
    """Windows of the text, and the same ones a character later; all parts are drawn from the whole text."""
    found = text().unfold(0, PLACES + 1, PLACES)
    found = found[torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))]
    return tuple((part[:, :-1], part[:, 1:]) for part in found.split([12_800, 1024, len(found) - 13_824])[:3])


def digits(seed: int) -> Parts:
    """Digits, their pixels in [0, 1], as eight rows: 60 % for training, 20 % held out, 20 % for the test."""
    pixels, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 8, 8)[order], torch.tensor(classes)[order]
    sizes = [len(y) * 6 // 10, len(y) * 2 // 10]
    sizes.append(len(y) - sum(sizes))
    return tuple(zip(x.split(sizes), y.split(sizes), strict=True))


def scenes(seed: int) -> Parts:
    """Images of 24x24 pixels that each show a large digit, a small one and noise."""
    random = torch.Generator().manual_seed(seed)
    return tuple(
        _scenes(*part, count, random) for part, count in zip(digits(seed), (2400, 400, 600), strict=True)
    )  # each part has digits of its own


def _scenes(shapes: Tensor, kinds: Tensor, count: int, random: torch.Generator) -> tuple[Tensor, Targets]:
    """Images, and for each scale the class of each cell and the box of an object in it."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=random))

    images = 0.2 * torch.rand(count, 1, SIDE, SIDE, generator=random)
    targets = [
        {"classes": torch.zeros(count, n, n, dtype=torch.long), "boxes": torch.full((count, 4, n, n), ABSENT)}
        for n in (SIDE // stride for stride in STRIDES)
    ]
    for image in range(count):
        while True:
            places = [_place(draw, low, high) for low, high in ((7, 10), (12, 16))]
            if not _meet(*places):
                break
        for target, stride, (top, height, left, width) in zip(targets, STRIDES, places, strict=True):
            which = draw(0, len(kinds))
            shape = F.interpolate(shapes[which][None, None], (height, width), mode="bilinear")[0, 0]
            there = images[image, 0, top : top + height, left : left + width]
            torch.maximum(there, shape, out=there)
            y, x = (top + height / 2) / stride, (left + width / 2) / stride
            target["classes"][image, int(y), int(x)] = kinds[which] + 1
            box = torch.tensor([y % 1, x % 1, height / stride / 2, width / stride / 2])
            target["boxes"][image, :, int(y), int(x)] = box
    return images, targets


def _place(draw: Callable[[int, int], int], low: int, high: int) -> tuple[int, int, int, int]:
    """A top, a height, a left and a width."""
    height, width = draw(low, high), draw(low, high)
    return draw(0, SIDE + 1 - height), height, draw(0, SIDE + 1 - width), width


def _meet(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    """Whether two places share a pixel."""
    return all(a[k] < b[k] + b[k + 1] and b[k] < a[k] + a[k + 1] for k in (0, 2))


def patches(seed: int) -> Parts:
    """Blocks of 16x16 grey pixels of two photographs, and averages of 2x2 of them, in any order.

    Those for training are there in all eight ways to turn and flip them.
    """
    blocks = []
    for image in load_sample_images().images:
        grey = torch.tensor(image).float().mean(-1) / 255
        blocks.append(grey.unfold(0, 16, 16).unfold(1, 16, 16).reshape(-1, 1, 16, 16))
    fine = torch.cat(blocks)
    order = torch.randperm(len(fine), generator=torch.Generator().manual_seed(seed))
    parts = list(fine[order].split([1280, 400, len(fine) - 1680]))
    parts[0] = torch.cat([turned.rot90(k, (2, 3)) for turned in (parts[0], parts[0].flip(3)) for k in range(4)])
    return tuple((F.avg_pool2d(part, 2), part) for part in parts)


def perplexity(scores: Tensor, following: Tensor) -> float:
    """Of a character: the exponential of the mean loss in nats."""
    return float(F.cross_entropy(scores.transpose(1, 2).double(), following).exp())


def accuracy(scores: Tensor, classes: Tensor) -> float:
    """Share of right classes in percent."""
    return 100 * float((scores.argmax(1) == classes).double().mean())


def decibels(images: Tensor, fine: Tensor) -> float:
    """Peak signal-to-noise ratio over all pixels."""
    return -10 * float((images.double() - fine).square().mean().log10())


def detected(outputs: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> float:
    """F1 in percent: found are digits of the right class whose boxes overlap by half, of their union, or more.

    An answer is a cell whose most probable class is a digit, and whose probability of any is the greatest around it.
    """
    found = answers = objects = 0
    for output, target in zip(outputs, targets, strict=True):
        there = 1 - output["classes"].softmax(1)[:, 0]
        named = output["classes"].argmax(1)
        answered = (named > 0) & (there == F.max_pool2d(there, 3, 1, 1))
        answers, objects = answers + int(answered.sum()), objects + int((target["classes"] > 0).sum())
        for image, *cell in (target["classes"] > 0).nonzero().tolist():
            kind = target["classes"][image, *cell]
            truth = _corners(target["boxes"][image, :, *cell], cell)
            near = (answered[image] & (named[image] == kind)).nonzero().tolist()
            found += any(_overlap(_corners(output["boxes"][image, :, *one], one), truth) >= 0.5 for one in near)
    return 200 * found / (answers + objects)


def _corners(box: Tensor, cell: list[int]) -> tuple[Tensor, Tensor]:
    """The first and the last corner, in cells."""
    centre = box[:2] + torch.tensor(cell)
    return centre - box[2:], centre + box[2:]


def _overlap(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """Intersection over union."""
    common = (torch.minimum(a[1], b[1]) - torch.maximum(a[0], b[0])).clamp(0).prod()
    return float(common / ((a[1] - a[0]).clamp(0).prod() + (b[1] - b[0]).prod() - common))


class Task(NamedTuple):
    """A network, its data and what is made of it.

    Attributes:
        make: the network before training.
        data: parts for training, held out and of the test, by the seed.
        likelihood: makes that of the targets.
        loss: of outputs, as the network is trained in float.
        score: of outputs.
        unit: of the score.
        float_epochs: of the network in float.
        epochs: of each fit.
        batch: examples.
        rate: of Adam for the network in float, from which it falls along a cosine.
    """

    make: Callable[[], nn.Module]
    data: Callable[[int], Parts]
    likelihood: Callable[[], Any]
    loss: Callable[[Any, Any], Tensor]
    score: Callable[[Any, Any], float]
    unit: str
    float_epochs: int
    epochs: int
    batch: int = 64
    rate: float = 3e-3


def loss_of_text(scores: Tensor, following: Tensor) -> Tensor:
    """Mean over characters in nats."""
    return F.cross_entropy(scores.transpose(1, 2), following)


def loss_of_scales(outputs: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> Tensor:
    """What `of_scales` says, for an image."""
    law = of_scales()(outputs)
    return -sum(  # type: ignore[return-value]
        law.laws[f"obs.{scale}.{name}"].log_prob(value).sum()
        for scale, target in enumerate(targets)
        for name, value in target.items()
    ) / len(targets[0]["classes"])


def of_boxes(output: Tensor) -> Boxes:
    """The law of boxes, with a deviation of half a cell."""
    return Boxes(output, 0.5)


def of_scales() -> PerOutput:
    """The likelihood of the detector's outputs; nothing counts a tenth of a digit, as most cells have none."""
    weight = [0.1] + 10 * [1.0]
    return PerOutput([{"classes": Categorical(axis=1, weight=weight), "boxes": of_boxes} for _ in STRIDES])


_LANGUAGE = (windows, lambda: Categorical(axis=-1), loss_of_text, perplexity, "perplexity")
_DETECTION = (scenes, of_scales, loss_of_scales, detected, "F1, %", 30, 6)
TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "Transformer, text": Task(Transformer, *_LANGUAGE, 24, 3, batch=128),
        "LSTM, text": Task(Memory, *_LANGUAGE, 24, 2, batch=128),
        "GRU, rows of digits": Task(Rows, digits, Categorical, F.cross_entropy, accuracy, "accuracy, %", 60, 24),
        "detector, two scales": Task(Detector, *_DETECTION, rate=1e-2),
        "detector, one head": Task(lambda: OneHead(1), *_DETECTION, rate=1e-2),
        "detector, one head, a norm of each scale": Task(lambda: OneHead(2), *_DETECTION, rate=1e-2),
        "super-resolution": Task(Finer, patches, Normal, F.mse_loss, decibels, "PSNR, dB", 12, 3),
    }
)
