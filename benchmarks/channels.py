"""Channels or widths: what a limit on bit operations buys on the digits at equal cost and epochs.

The network is that of `probq demo`, two convolutions of 16 and 32 channels with batch normalisation and a linear layer,
trained in float for 10 epochs. Each method has 40 more: "searched" is `probq.search_channels` at 4 bits in three rounds
of 8, then 16 at its channels; "scaled" trains a network with the same share of all channels in float for 24 epochs and
at 4 bits for 16; "widths" keeps all channels and fits widths.

    python benchmarks/channels.py --seeds 3 --out channels.jsonl
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocol import accuracy, completed, machine, train, versions
from torch import nn

import probq
from probq.cli import demo
from probq.codebooks import ladder

LIMITS, METHODS, BITS = (0.15, 0.3), ("searched", "scaled", "widths"), 4
ROUNDS, EPOCHS_ROUND, EPOCHS = 3, 8, 16


def network(width: int) -> nn.Sequential:
    """The demo's network with other numbers of channels, width and twice as many."""
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * width, 10)),
    )


def plan(layer: probq.Layer) -> probq.Plan:
    """One width everywhere."""
    return probq.Plan(ladder(BITS), ladder(BITS, signed=layer.smallest < 0))


def one(method: str, limit: float, seed: int) -> dict[str, Any]:
    """The record of one network."""
    images = demo.digits(seed)
    example, held = images.train.tensors[0][: demo.BATCH], [images.validation.tensors]
    torch.manual_seed(seed)
    batches, net = demo._batches(images.train, torch.Generator().manual_seed(seed)), network(16)
    train(net, batches, demo.EPOCHS_FLOAT)
    most = probq.Budget(percent=limit).absolute(probq.layers(net, example))
    options: dict[str, Any] = {"seed": seed, "progress": False}
    if method == "widths":
        q = probq.quantize(net, example)
        probq.fit(q, batches, probq.Budget(limit=most), ROUNDS * EPOCHS_ROUND + EPOCHS, validation=held, **options)
    else:
        if method == "searched":
            budget = probq.Budget(limit=most)
            net = probq.search_channels(
                net, example, batches, budget, EPOCHS_ROUND, bits=BITS, rounds=ROUNDS, **options
            ).net
        else:
            net = scaled(example, most)
            train(net, batches, ROUNDS * EPOCHS_ROUND)
        q = probq.quantize(net, example, plan)
        probq.fit(q, batches, epochs=EPOCHS, **options)
    x, y = images.test.tensors
    with torch.no_grad():
        right = accuracy(q(x), y)
    record = {"method": method, "limit": limit, "seed": seed, "accuracy": right, "share": 100 * q.mode().cost() / most}
    record["channels"] = [m.out_channels for m in q.net.modules() if isinstance(m, nn.Conv2d)]
    return {**record, "machine": machine(), "versions": versions()}


def scaled(example: torch.Tensor, most: float) -> nn.Sequential:
    """The widest network within a limit at one width, with new weights."""
    return next(
        net for net in map(network, range(16, 0, -1)) if probq.quantize(net, example, plan).mode().cost() <= most
    )


def table(runs: Iterable[dict[str, Any]]) -> str:
    """A row for each method under each limit."""
    found = list(runs)
    lines = ["| limit, % | method | accuracy, % | of the limit spent, % | channels |", "|---" * 5 + "|"]
    for limit in LIMITS:
        for method in METHODS:
            own = [r for r in found if (r["method"], r["limit"]) == (method, limit)]
            if own:
                right = [r["accuracy"] for r in own]
                error = np.std(right, ddof=1) / len(own) ** 0.5 if len(own) > 1 else float("nan")
                channels = ", ".join("-".join(map(str, r["channels"])) for r in own)
                cells = [f"{limit:g}", method, f"{np.mean(right):.2f} ± {error:.2f}"]
                cells += [f"{np.mean([r['share'] for r in own]):.0f}", channels]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Make what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--out", type=Path, required=True, help="results file, one JSON record per line")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    runs = [(method, limit, seed) for seed in range(options.seeds) for limit in LIMITS for method in METHODS]
    print(table(completed(options.out, runs, lambda r: (r["method"], r["limit"], r["seed"]), one)))


if __name__ == "__main__":
    main()
