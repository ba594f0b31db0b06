"""This zoo has the networks of the benchmarks, and awkward ones that break naive quantizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def lenet5() -> nn.Sequential:
    """Return LeNet-5 for 28x28 images: 32C5-MP2-64C5-MP2-512-10, valid padding, no batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


def vgg7(width: float = 1.0) -> nn.Sequential:
    """Return VGG-7 for 32x32 images: 2x128C3-MP2-2x256C3-MP2-2x512C3-MP2-1024-10 with batch normalisation.

    Args:
        width: factor of all channel counts.
    """
    modules: list[nn.Module] = []
    before = 3
    for channels in (int(width * n) for n in (128, 256, 512)):
        for last in (False, True):
            modules += [nn.Conv2d(before, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
            modules += [nn.MaxPool2d(2)] if last else []
            before = channels
    hidden = int(width * 1024)
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(16 * before, hidden), nn.ReLU(), nn.Linear(hidden, 10))


class Residual(nn.Module):
    """A convolution and batch normalisation (with statistics of its own) stand beside an identity."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1)
        self.norm1, self.norm2 = _trained(nn.BatchNorm2d(4)), _trained(nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        x = F.relu(self.norm1(self.stem(x)))
        return self.head(F.relu(x + self.norm2(self.conv(x))).mean((2, 3)))


class TiedEmbedding(nn.Module):
    """The weight of this embedding is also that of the last linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.out = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, index: Tensor) -> Tensor:
        """Return scores of the next index."""
        return self.out(torch.tanh(self.mix(self.embed(index)).mean(1)))


class Twice(nn.Module):
    """This network calls one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        return self.out(torch.relu(self.shared(torch.relu(self.shared(x)))))


class Functional(nn.Module):
    """This network calls `F.linear` on the weight of a module that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        return F.linear(torch.relu(self.first(x)), self.second.weight, self.second.bias)


class Recurrent(nn.Module):
    """An LSTM stands before a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        return self.out(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    """A transformer's encoder layer stands before a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        return self.out(self.encoder(x).mean(1))


class Pair(nn.Module):
    """This network returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.left, self.right = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return two outputs."""
        hidden = torch.relu(self.body(x))
        return self.left(hidden), self.right(hidden)


class Buffers(nn.Module):
    """This network standardises its input with buffers, and is called with keywords."""

    mean: Tensor
    sd: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, -0.5, 1.0]))
        self.register_buffer("sd", torch.tensor([2.0, 1.0, 0.5]))
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        return self.out(input=(x - self.mean) / self.sd)


def _trained(norm: Any) -> Any:
    """Return a normalisation as training leaves it: every statistic away from its start, one gain negative."""
    channels = torch.arange(norm.num_features, dtype=torch.get_default_dtype())
    for name, values in (("running_mean", 0.1 * channels - 0.2), ("running_var", 0.5 + 0.3 * channels)):
        getattr(norm, name).copy_(values)
    norm.weight.data.copy_(1.2 - 0.5 * channels)
    norm.bias.data.copy_(0.3 - 0.2 * channels)
    return norm


def _nested() -> nn.Sequential:
    return nn.Sequential(nn.Sequential(nn.Linear(4, 5), nn.ReLU()), nn.ModuleDict({"a": nn.Linear(5, 2)})["a"])


def _image(head: int, *body: nn.Module) -> nn.Sequential:
    return nn.Sequential(*body, nn.ReLU(), nn.Flatten(), nn.Linear(head, 3))


ZOO: tuple[tuple[str, Callable[[], nn.Module], tuple[int, ...]], ...] = (
    ("sequential", lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (5, 6)),
    ("residual", Residual, (3, 2, 6, 6)),
    ("tied embedding", TiedEmbedding, ()),
    ("layer used twice", Twice, (5, 4)),
    ("functional", Functional, (4, 5)),
    ("transformer", Attention, (2, 5, 8)),
    ("lstm", Recurrent, (3, 4, 3)),
    ("depthwise", lambda: _image(96, nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)), (2, 3, 6, 6)),
    ("transposed", lambda: _image(150, nn.ConvTranspose2d(2, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 6, 1)), (2, 2, 3, 3)),
    ("transposed groups", lambda: _image(216, nn.ConvTranspose2d(4, 6, 2, 2, groups=2)), (2, 4, 3, 3)),
    ("non-square", lambda: _image(40, nn.Conv2d(2, 4, (3, 1), (2, 1), (1, 0)), nn.Conv2d(4, 5, (1, 4))), (2, 2, 3, 7)),
    ("nested", _nested, (4, 4)),
    ("tuple", Pair, (3, 4)),
    ("buffers", Buffers, (4, 3)),
    ("conv1d", lambda: _image(24, nn.Conv1d(2, 4, 3), _trained(nn.BatchNorm1d(4))), (3, 2, 8)),
    ("conv3d", lambda: _image(32, nn.Conv3d(1, 4, 3, stride=2)), (2, 1, 5, 5, 5)),
)  # fmt: skip


def zoo() -> Iterator[tuple[str, nn.Module, Any]]:
    """Yield networks that break naive quantizers, each with a name and an example; the same ones at every call.

    Example:
        >>> [name for name, net, example in zoo()][:3]
        ['sequential', 'residual', 'tied embedding']
    """
    for number, (name, make, shape) in enumerate(ZOO):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            net = make().eval()
            example = torch.randn(shape) if shape else torch.randint(0, 7, (5, 3))
        yield name, net, example
