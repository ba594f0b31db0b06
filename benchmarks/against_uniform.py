"""Digits: learned widths against uniform ones of the same cost, on small networks and many seeds.

For each seed (which also splits the images into 60 % for training, 20 % held out and 20 % for the test), a float
network is trained, and `probq.fit` with its defaults is given its uniform widths, and a limit of just their cost. Both
see the same images for as many epochs. Accuracies and losses are those of the integer models on the test images. A
record that is there already is not made again; a pair takes 10 to 20 s of one core.

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
from torch import nn
from torch.utils.data import DataLoader

import probq
from probq.cli import demo

WIDTHS = ((1, 2), (2, 2), (4, 4))  # of weights and inputs, in bits
EPOCHS_FLOAT = 16


def perceptron() -> nn.Sequential:
    """Three linear layers without normalisation."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {"convolutions": demo.network, "perceptron": perceptron}
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
    plans = {"uniform": probq.uniform(*widths), "learned": probq.Plan()}
    budget = None
    for name, plan in plans.items():
        q = probq.quantize(net, images.train.tensors[0][: demo.BATCH], plan)
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
        budget = probq.Budget(limit=mode.cost())
    return record


def kind(record: dict[str, Any]) -> tuple[Any, ...]:
    """Which run a record is of: the arguments of `one`."""
    return record["network"], (record["weight"], record["input"]), record["seed"], record["epochs"]


def table(records: list[dict[str, Any]]) -> str:
    """A row for each network, cost and length; differences are of pairs, with standard errors."""
    rows = [
        "| network | epochs | uniform widths | BOPs, % | learned, BOPs, % | seeds | float, % | uniform, % | "
        "learned, % | difference | difference in loss, nats | differing |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
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

    def difference(key: str, digits: int) -> str:
        gained = all_of("learned", key) - all_of("uniform", key)
        error = f" ± {gained.std(ddof=1) / len(gained) ** 0.5:.{digits}f}" if len(gained) > 1 else ""
        return f"{gained.mean():+.{digits}f}{error}"

    means = [np.mean([r["float"] for r in own]), all_of("uniform", "test").mean(), all_of("learned", "test").mean()]
    costs = [all_of("uniform", "percent").mean(), all_of("learned", "percent").mean()]
    differing = sum(r[method]["differing"] for r in own for method in ("uniform", "learned"))
    cells = [*first, *(f"{cost:.3f}" for cost in costs), str(len(own)), *(f"{mean:.2f}" for mean in means)]
    return "| " + " | ".join([*cells, difference("test", 2), difference("loss", 4), str(differing)]) + " |"


def main() -> None:
    """Make what is missing, print a table."""
    options = arguments()
    runs = [(n, widths, s, options.epochs) for s in range(options.seeds) for n in options.network for widths in WIDTHS]
    print(table(completed(options.out, runs, kind, one)))


if __name__ == "__main__":
    main()
