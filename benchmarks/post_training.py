"""Digits: widths chosen without training by several criteria, against uniform ones of the same cost.

For each seed, which also splits the images and draws the 512 examples that everything is set by, a float network is
trained. At the bit operations of uniform widths, each method then gives an integer model, without training; its
accuracy is that on the test images. A record that is there already is not made again; one takes up to half a minute.

    python benchmarks/post_training.py --seeds 5 --out post_training.jsonl
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from against_uniform import EPOCHS_FLOAT, NETWORKS
from protocol import accuracy, completed, integer_outputs, train
from torch.utils.data import DataLoader

import probq
from probq.cli import demo
from probq.training.ptq.input_scales import set_input_scales
from probq.utils.batches import Batches

WIDTHS = (2, 3, 4, 8)  # of weights and inputs, whose cost is the limit
LADDER = (1, 2, 3, 4, 5, 6, 8)
EXAMPLES = 512
CRITERIA: Mapping[str, Callable[..., probq.Energy]] = MappingProxyType(
    {"loss": probq.criteria.loss, "kl": probq.criteria.kl, "clado": probq.criteria.clado}
)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0 on")
    parser.add_argument("--network", choices=NETWORKS, nargs="*", default=list(NETWORKS))
    parser.add_argument("--out", type=Path, required=True, help="results file, one JSON record per line")
    return parser.parse_args()


def one(network: str, bits: int, seed: int) -> dict[str, Any]:
    """One float network, at uniform widths and at those that each criterion chooses."""
    torch.manual_seed(seed)
    images, net = demo.digits(seed), NETWORKS[network]()
    train(net, DataLoader(images.train, batch_size=demo.BATCH, shuffle=True), EPOCHS_FLOAT)
    chosen = torch.randperm(len(images.train))[:EXAMPLES]
    x, y = (tensor[chosen] for tensor in images.train.tensors)
    batches, test = list(zip(x.split(64), y.split(64), strict=True)), images.test.tensors
    record: dict[str, Any] = {"network": network, "bits": bits, "seed": seed}
    record["float"] = accuracy(net(test[0]).detach(), test[1])
    uniform = probq.quantize(net, x[:64], probq.uniform(bits, bits, profile="dyadic"))
    set_input_scales(uniform, Batches(batches, uniform.device))
    decided = uniform.at(uniform.mode())
    rounded = probq.ptq.gpfq(decided, batches)
    record["uniform"] = scores(decided, test)
    record["uniform, gpfq"] = scores(rounded, test)
    record["uniform, bias"] = scores(probq.ptq.bias(decided, batches), test)
    record["uniform, gpfq and bias"] = scores(probq.ptq.bias(rounded, batches, reference=decided), test)
    budget = probq.Budget(limit=decided.mode().cost())
    ladders = {"weight": probq.codebooks.ladder(*LADDER), "input": probq.codebooks.ladder(*LADDER, signed=False)}
    plan = probq.Plan(**ladders, profile="dyadic")
    for name, criterion in CRITERIA.items():
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*energies of")
            q = probq.post_training(net, batches, budget, plan=plan, criterion=criterion, progress=False)
        record[name] = {**scores(q, test), "seconds": time.perf_counter() - start}
    return record


def scores(q: probq.Quantized, test: tuple[torch.Tensor, ...]) -> dict[str, float]:
    """Test accuracy of the integer model, its cost, and outputs that differ from the network's."""
    outputs, differing = integer_outputs(q, probq.lower(q), test[0])
    return {"test": accuracy(outputs, test[1]), "percent": q.mode().percent(), "differing": differing}


def kind(record: dict[str, Any]) -> tuple[Any, ...]:
    """Which run a record is of: the arguments of `one`."""
    return record["network"], record["bits"], record["seed"]


METHODS = ("uniform", "uniform, gpfq", "uniform, bias", "uniform, gpfq and bias", *CRITERIA)


def table(records: list[dict[str, Any]]) -> str:
    """Return a row for each network and cost: mean accuracies, and differences to uniform widths with errors."""
    head = "| network | cost of | seeds | float, % | " + " | ".join(f"{m}, %" for m in METHODS) + " | differing |"
    rows = [head, "|" + "---|" * (head.count("|") - 1)]
    for network, bits in product(NETWORKS, WIDTHS):
        own = [r for r in records if (r["network"], r["bits"]) == (network, bits)]
        if own:
            cells = [network, f"{bits}/{bits}", str(len(own)), f"{np.mean([r['float'] for r in own]):.2f}"]
            cells += [against(own, method) for method in METHODS]
            rows.append("| " + " | ".join([*cells, str(sum(r[m]["differing"] for r in own for m in METHODS))]) + " |")
    return "\n".join(rows)


def against(own: list[dict[str, Any]], method: str) -> str:
    """Mean accuracy of a method, or how far it is ahead of uniform widths."""
    test = np.array([r[method]["test"] for r in own])
    if method == "uniform":
        return f"{test.mean():.2f}"
    gained = test - np.array([r["uniform"]["test"] for r in own])
    error = f" ± {gained.std(ddof=1) / len(gained) ** 0.5:.2f}" if len(gained) > 1 else ""
    return f"{gained.mean():+.2f}{error}"


def main() -> None:
    """Make what is missing, print a table."""
    options = arguments()
    runs = [(n, bits, s) for s in range(options.seeds) for n in options.network for bits in WIDTHS]
    print(table(completed(options.out, runs, kind, one)))


if __name__ == "__main__":
    main()
