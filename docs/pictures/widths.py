"""The picture of README.md, made by running the lines of its example on a small network for handwritten digits.

python docs/pictures/widths.py
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).parents[2]


def example() -> str:
    """The example's lines."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]


def digits() -> tuple[Tensor, Tensor]:
    """1,797 images of 8 x 8 pixels in [0, 1], and their classes."""
    images, classes = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)[order] / 16, torch.tensor(classes)[order]


def trained(batches: DataLoader, epochs: int = 10) -> nn.Module:
    """Two convolutions and a linear layer."""
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10)),
    )
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(epochs):
        for images, classes in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), classes).backward()
            optimizer.step()
    return net.eval()


def run() -> dict[str, Any]:
    """Run the example in a folder that is removed, and return its names."""
    torch.set_num_threads(1)  # sums of several threads differ in their last bits, and fits with them
    torch.manual_seed(0)
    x, y = digits()
    batches = DataLoader(TensorDataset(x[:1100], y[:1100]), batch_size=64, shuffle=True)
    names = {"net": trained(batches), "example": x[:64], "batches": batches}
    names |= {"held": [(x[1100:1400], y[1100:1400])], "x": x[1400:]}
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            exec(example(), names)
        finally:
            os.chdir(before)
    right = (torch.from_numpy(names["integers"]).argmax(1) == y[1400:]).double().mean()
    print(f"{100 * right:.2f} % of the other 397 images are right, at {names['decision'].percent():.3f} % of the BOPs")
    return names


if __name__ == "__main__":
    mpl.use("agg")
    figure = run()["axes"].figure
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=120, bbox_inches="tight")
