"""Data of the benchmarks, read from a folder that the user gives; nothing is downloaded."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA_HELP = (
    "folder with the four MNIST IDX files (train-images-idx3-ubyte.gz, ...), or with a folder mnist/ of them. "
    "They are the original MNIST IDX files; torchvision.datasets.MNIST(root, download=True) puts the same ones into "
    "root/MNIST/raw, and Hugging Face has the same images as the dataset ylecun/mnist."
)
CIFAR_HELP = (
    "folder with cifar10_jpeg_train.npz and cifar10_jpeg_test.npz, or with a folder cifar10/ of them: arrays jpeg "
    "(bytes of all files), offset and label. The images without the loss of JPEG are torchvision.datasets.CIFAR10 and, "
    "on Hugging Face, uoft-cs/cifar10; accuracies on the two are not comparable."
)


def read_idx(path: Path) -> np.ndarray:
    """An array in MNIST's IDX format, gzip-compressed or not: two zero bytes, type 8 (uint8), axes, lengths, data."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        raw = file.read()
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path.name} is not an IDX file of bytes")
    shape = np.frombuffer(raw, ">i4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def _find(folder: Path, names: list[str]) -> Path:
    places = (folder, folder / "mnist", folder / "cifar10", folder / "MNIST" / "raw")
    for path in (place / name for place in places for name in names):
        if path.exists():
            return path
    raise FileNotFoundError(f"{folder} holds no {names[0]}")


def mnist(folder: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Images `[examples, 1, 28, 28]` in [0, 1] and labels of MNIST, in the original order."""
    part = "train" if train else "t10k"
    images, labels = (
        read_idx(_find(folder, [f"{part}-{kind}-ubyte.gz", f"{part}-{kind}-ubyte"]))
        for kind in ("images-idx3", "labels-idx1")
    )
    return torch.from_numpy(images[:, None].astype(np.float32) / 255), torch.from_numpy(labels.astype(np.int64))


def cifar10(folder: Path, train: bool, count: int | None = None, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Images `[count, 3, 32, 32]`, uint8, and labels of the JPEG-coded CIFAR-10 (needs Pillow).

    Args:
        folder: that has the files.
        train: the training images, or those of the test.
        count: the first ones alone.
        chosen: numbers of some, in place of all.
    """
    from PIL import Image

    file = np.load(_find(folder, [f"cifar10_jpeg_{'train' if train else 'test'}.npz"]))
    raw, offset = file["jpeg"].tobytes(), file["offset"]
    numbers = np.arange(len(offset) - 1)[:count] if chosen is None else chosen.numpy()
    files = (io.BytesIO(raw[offset[n] : offset[n + 1]]) for n in numbers)
    images = np.stack([np.asarray(Image.open(file, formats=("JPEG",)).convert("RGB")) for file in files])
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(
        file["label"][numbers].astype(np.int64)
    )


def split(x: Tensor, y: Tensor, held_out: int, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and held-out part of a training set; the same for the same seed."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    rest, held = order[held_out:], order[:held_out]
    return (x[rest], y[rest]), (x[held], y[held])


class Shuffled:
    """Batches of tensors in a new random order each pass; quicker than a `DataLoader`, which collates single items."""

    def __init__(self, x: Tensor, y: Tensor, batch: int, shuffle: bool = True) -> None:
        self.dataset = torch.utils.data.TensorDataset(x, y)
        self.batch, self.shuffle = batch, shuffle

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self.dataset.tensors
        order = torch.randperm(len(x)) if self.shuffle else torch.arange(len(x))
        for part in order.split(self.batch):
            yield x[part], y[part]


class Cropped:
    """Batches of uint8 images, augmented as is usual for CIFAR-10 and scaled to [0, 1].

    Each image gets a black border of 4 pixels, is cropped to its size at a random place, and is flipped left to right
    with probability 1/2.
    """

    def __init__(self, x: Tensor, y: Tensor, batch: int) -> None:
        self.dataset, self.batch, self.side = torch.utils.data.TensorDataset(x, y), batch, x.shape[-1]
        self.bordered = torch.nn.functional.pad(x, (4, 4, 4, 4))

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        crops = self.bordered.unfold(2, self.side, 1).unfold(3, self.side, 1)
        for part in torch.randperm(len(self.dataset)).split(self.batch):
            down, right = torch.randint(9, (2, len(part)))
            x = crops[part, :, down, right]
            flipped = torch.rand(len(part)) < 0.5
            x[flipped] = x[flipped].flip(-1)
            yield x.float() / 255, self.dataset.tensors[1][part]
