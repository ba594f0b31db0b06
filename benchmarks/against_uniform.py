"""Digits: learned widths against uniform and allocated ones of the same cost, on small networks and many seeds.

For each seed (which also splits the images into 60 % for training, 20 % held out and 20 % for the test), a float
network is trained, and `probq.fit` with its defaults is given its uniform widths, a limit of just their cost, and as a
control the widths that `probq.allocate` finds within it by the losses that `probq.criteria.loss` measures on 512
training images, without training. All see the same images for as many epochs. Accuracies and losses are those of the
integer models on the test images. A record that is there already is not made again; it takes 10 to 40 s of one core.

    python benchmarks/against_uniform.py --seeds 20 --out against_uniform.jsonl
    python benchmarks/against_uniform.py --seeds 5 --epochs 160 --network perceptron --out against_uniform.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from protocol import accuracy, completed, integer_outputs, train
from resnet8 import Block
from torch import Tensor, nn
from torch.utils.data import DataLoader

import probq
from probq.cli import demo

WIDTHS = ((1, 2), (2, 2), (3, 3), (4, 4))  # of weights and inputs, in bits
EPOCHS_FLOAT = 16
EXAMPLES = 512  # of the training images, by which the control allocates


def perceptron() -> nn.Sequential:
    """Three linear layers without normalisation."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


class Residual(nn.Module):
    """A convolution, two residual blocks of 8 and 16 channels, mean, linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.block1, self.block2 = Block(8, 8, 1), Block(8, 16, 2)
        self.linear = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return self.linear(self.block2(self.block1(torch.relu(self.norm(self.conv(x))))).mean((2, 3)))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {"convolutions": demo.network, "perceptron": perceptron, "residual": Residual}
)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds, from 0 on")
    parser.add_argument("--epochs", type=int, default=16, help="epochs of each fit")
    parser.add_argument("--network", choices=NETWORKS, nargs="*", default=list(NETWORKS))
    parser.add_argument("--out", type=Path, required=True, help="results file, one JSON record per line")
    return parser.parse_args()


def one(network: str, widths: tuple[int, int], seed: int, epochs: int) -> dict[str, Any]:
    """One float network, quantized at uniform widths and at learned ones."""
    torch.manual_seed(seed)
    images, net = demo.digits(seed), NETWORKS[network]()
    batches = DataLoader(images.train, batch_size=demo.BATCH, shuffle=True)
    held = DataLoader(images.validation, batch_size=len(images.validation))
    train(net, batches, EPOCHS_FLOAT)
    x, y = images.test.tensors
    record: dict[str, Any] = {"network": network, "weight": widths[0], "input": widths[1], "seed": seed}
    record["epochs"] = epochs
    record["float"] = accuracy(net(x).detach(), y)
    budget = None
    for name in ("uniform", "learned", "allocated"):
        q = probq.quantize(net, images.train.tensors[0][: demo.BATCH], probq.uniform(*widths) if not budget else None)
        if name == "allocated":
            examples = [tuple(part[:EXAMPLES] for part in images.train.tensors)]
            q = q.at(probq.allocate(q, probq.criteria.loss(q, examples, progress=False), budget))
        probq.fit(q, batches, budget, epochs, validation=held, seed=seed, progress=False)
        mode = q.mode(budget)
        outputs, differing = integer_outputs(q, probq.lower(q, mode), x)
        record[name] = {
            "test": accuracy(outputs, y),
            "loss": float(nn.functional.cross_entropy(outputs, y)),
            "percent": mode.percent(),
            "widths": {tensor: int(bits) for tensor, bits in mode.widths.items()},
            "differing": differing,
        }
        budget = budget or probq.Budget(limit=mode.cost())
    return record


def kind(record: dict[str, Any]) -> tuple[Any, ...]:
    """Which run a record is of: the arguments of `one`."""
    return record["network"], (record["weight"], record["input"]), record["seed"], record["epochs"]


def table(records: list[dict[str, Any]]) -> str:
    """A row for each network, cost and length; differences from uniform widths are of pairs, with standard errors."""
    rows = [
        "| network | epochs | uniform widths | BOPs, % | learned, BOPs, % | seeds | float, % | uniform, % | "
        "learned | loss, nats | allocated | loss, nats | differing |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lengths = sorted({r["epochs"] for r in records})
    for network, epochs, widths in product(NETWORKS, lengths, WIDTHS):
        own = [r for r in records if kind(r) == (network, widths, r["seed"], epochs)]
        if own:
            rows.append(row([network, str(epochs), f"{widths[0]}/{widths[1]}"], own))
    return "\n".join(rows)


def row(first: list[str], own: list[dict[str, Any]]) -> str:
    """One row of the table."""

    def all_of(method: str, key: str) -> np.ndarray:
        return np.array([r[method][key] for r in own])

    def difference(method: str, key: str, digits: int) -> str:
        gained = all_of(method, key) - all_of("uniform", key)
        error = f" ± {gained.std(ddof=1) / len(gained) ** 0.5:.{digits}f}" if len(gained) > 1 else ""
        return f"{gained.mean():+.{digits}f}{error}"

    costs = [all_of("uniform", "percent").mean(), all_of("learned", "percent").mean()]
    means = [np.mean([r["float"] for r in own]), all_of("uniform", "test").mean()]
    differing = sum(r[method]["differing"] for r in own for method in ("uniform", "learned", "allocated"))
    cells = [*first, *(f"{cost:.3f}" for cost in costs), str(len(own)), *(f"{mean:.2f}" for mean in means)]
    gains = [difference(m, *of) for m in ("learned", "allocated") for of in (("test", 2), ("loss", 4))]
    return "| " + " | ".join([*cells, *gains, str(differing)]) + " |"


def main() -> None:
    """Make what is missing, print a table."""
    options = arguments()
    runs = [(n, widths, s, options.epochs) for s in range(options.seeds) for n in options.network for widths in WIDTHS]
    print(table(completed(options.out, runs, kind, one)))


if __name__ == "__main__":
    main()
