"""Digits: weights of vectors and products against learned widths, on small networks, at equal storage.

For each seed (which also splits the images into 60 % for training, 20 % held out and 20 % for the test), a float
network is trained. Its large weights are codes of vectors, about one bit or half a bit of storage a weight, tables
included; what that takes is the limit on storage of the others: product codebooks, and `probq.fit` with its defaults
over widths of 1 to 8 bits, or of 0 to 8 for each output channel, where tensors of 1 bit take too much. Small weights
have 4 bits beside vectors, inputs 8 everywhere. All see the same images for as many epochs. Accuracies and losses are
those of the integer models on the test images. A record that is there already is not made again; it takes some 10 s of
one core.

    python benchmarks/vectors.py --seeds 3 --out results_vectors.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from itertools import product as every
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from protocol import accuracy, completed, exported, integer_outputs, train
from torch import nn
from torch.utils.data import DataLoader

import probq
from probq.cli import demo
from probq.codebooks import Codebook, ladder, product, vector

EPOCHS_FLOAT = 16
WIDTHS = (1, 2, 3, 4, 5, 6, 8)
METHODS = ("vectors", "vectors, rate of the weights", "products", "widths", "widths of channels")
SIZES = ("one", "half")


def perceptron() -> nn.Sequential:
    """Three linear layers of 50,432 weights."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )


NETWORKS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {"perceptron": perceptron, "convolutions": demo.network}
)
# By network and size, the codebooks of the weights that have one, vectors' and products'.
BOOKS: Mapping[tuple[str, str], tuple[Mapping[str, Codebook], Mapping[str, Codebook]]] = MappingProxyType(
    {
        ("perceptron", "one"): (
            {"1": vector(16, 4), "3": vector(16, 4)},
            {"1": product(16, 8, entry_bits=4), "3": product(16, 32, entry_bits=4)},
        ),
        ("perceptron", "half"): (
            {"1": vector(16, 8), "3": vector(16, 8)},
            {"1": product(8, 4, entry_bits=4), "3": product(8, 16, entry_bits=4)},
        ),
        ("convolutions", "one"): (
            {"3": vector(16, 4), "8": vector(16, 4)},
            {"3": product(4, 18, entry_bits=4), "8": vector(16, 4)},
        ),
        ("convolutions", "half"): (
            {"3": vector(16, 8), "8": vector(16, 8)},
            {"3": product(4, 9, entry_bits=4), "8": vector(16, 8)},
        ),
    }
)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--epochs", type=int, default=16, help="epochs of each fit")
    parser.add_argument("--out", type=Path, required=True, help="results file, one JSON record per line")
    return parser.parse_args()


def plan(network: str, size: str, method: str) -> Callable[[probq.Layer], probq.Plan]:
    """How the layers of a network are quantized by a method."""
    vectors, products = BOOKS[network, size]

    def of(layer: probq.Layer) -> probq.Plan:
        x = ladder(8, signed=layer.smallest < 0)
        if method == "widths":
            return probq.Plan(ladder(*WIDTHS), x)
        if method == "widths of channels":
            return probq.Plan(ladder(0, *WIDTHS), x, gates="channel")
        books = products if method == "products" else vectors
        return probq.Plan(ladder(books.get(layer.name, 4)), x)

    return of


def one(network: str, size: str, method: str, seed: int, epochs: int) -> dict[str, Any]:
    """One float network, quantized by a method at the storage of vectors."""
    torch.manual_seed(seed)
    images, net = demo.digits(seed), NETWORKS[network]()
    batches = DataLoader(images.train, batch_size=demo.BATCH, shuffle=True)
    held = DataLoader(images.validation, batch_size=len(images.validation))
    train(net, batches, EPOCHS_FLOAT)
    x, y = images.test.tensors
    example = images.train.tensors[0]
    record: dict[str, Any] = {"network": network, "size": size, "method": method, "seed": seed, "epochs": epochs}
    record["float"] = accuracy(net(x).detach(), y)
    storage = probq.cost.storage
    limit = probq.quantize(net, example, plan(network, size, "vectors")).mode().cost(storage)
    q = probq.quantize(net, example, plan(network, size, method))
    budget = probq.Budget(limit=limit, cost=storage) if method.startswith("widths") else None
    rates = probq.Rates(vectors=probq.Rates().weights) if method.endswith("rate of the weights") else None
    record |= {"limit": limit, "whole": sum(layer.weights for layer in q.layers)}
    try:
        probq.fit(q, batches, budget, epochs, validation=held, seed=seed, rates=rates, progress=False)
    except probq.ProbqError as error:  # no widths within the limit
        return record | {"refused": str(error)}
    mode = q.mode(budget)
    model = probq.lower(q, mode)
    outputs, differing = integer_outputs(q, model, x)
    differing += sum(exported(model, ("c", "onnx"), x).values())
    return record | {
        "test": accuracy(outputs, y),
        "loss": float(nn.functional.cross_entropy(outputs, y)),
        "storage": mode.cost(storage),
        "differing": differing,
    }


def kind(record: dict[str, Any]) -> tuple[Any, ...]:
    """Which run a record is of: the arguments of `one`."""
    return tuple(record[name] for name in ("network", "size", "method", "seed", "epochs"))


def table(records: list[dict[str, Any]]) -> str:
    """A row for each network, size and method: means over seeds with their standard errors."""
    rows = [
        "| network | limit, bits a weight | method | storage, bits a weight | seeds | float, % | test, % "
        "| loss, nats | differing |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for network, size, method in every(NETWORKS, SIZES, METHODS):
        own = [r for r in records if (r["network"], r["size"], r["method"]) == (network, size, method)]
        if own:
            rows.append(row(own))
    return "\n".join(rows)


def row(own: list[dict[str, Any]]) -> str:
    """One row of the table."""
    first = own[0]
    cells = [first["network"], f"{first['limit'] / first['whole']:.2f}", first["method"]]
    if any("refused" in r for r in own):
        return "| " + " | ".join([*cells, "out of reach", *["-"] * 5]) + " |"

    def mean(name: str, digits: int) -> str:
        values = np.array([r[name] for r in own])
        error = f" ± {values.std(ddof=1) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
        return f"{values.mean():.{digits}f}{error}"

    storage = float(np.mean([r["storage"] / r["whole"] for r in own]))
    cells += [f"{storage:.2f}", str(len(own)), f"{np.mean([r['float'] for r in own]):.2f}"]
    return "| " + " | ".join([*cells, mean("test", 2), mean("loss", 3), str(sum(r["differing"] for r in own))]) + " |"


def main() -> None:
    """Make what is missing, print a table."""
    options = arguments()
    runs = [(*run, options.epochs) for run in every(NETWORKS, SIZES, METHODS, range(options.seeds))]
    print(table(completed(options.out, runs, kind, one)))


if __name__ == "__main__":
    main()
