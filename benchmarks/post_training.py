"""Widths chosen without training by every criterion, against uniform ones of the same bit operations or bits.

Two small networks for digits, LeNet-5 on MNIST and a narrow ResNet-8 on CIFAR-10 (`trained_networks.py` makes these
two). For each draw of 512 training examples, a criterion measures its energy once, and widths are allocated at the BOPs
and at the storage of uniform ones; inputs cost no storage, and stay on 8 bits in what is uniform there. Each decided
network has nearest rounding, with batch normalisation as in float or moved; or the best of that, `gpfq`,
`bias` and both; or learned rounding. `probq.post_training` takes the better one of the last two. The loss on the same
examples chooses. Accuracies are those of the integer model on test images, all of the digits and the first 2,000 of the
others; where `probq.lower` refuses, that of the decided network. Criteria that are new in the package are added; a
record that is there is not made again. `post_training_tools.py` has other tools.

    python benchmarks/post_training.py --data DIR --kept FOLDER --out results.jsonl
    python benchmarks/post_training.py --data DIR --kept FOLDER --rounding best learned --out results.jsonl
"""

from __future__ import annotations

import argparse
import functools
from itertools import product
from pathlib import Path
from typing import Any

import data
import trained_networks
from post_training_subject import LADDERS, Subject
from post_training_table import BITS, COSTS, ROUNDINGS, WIDEST, tables
from protocol import completed, machine, versions

import probq
from probq.criteria.clado import projected

CONVEX = " projected"  # pairwise energies without negative eigenvalues, as `probq.post_training` takes them
SLOW = ("limpq", "clado", f"clado{CONVEX}")  # come last
SECONDS = 20.0  # for the solver of pairwise energies


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=f"{data.DATA_HELP} For ResNet-8: {data.CIFAR_HELP}")
    parser.add_argument("--kept", type=Path, required=True, help=f"{trained_networks.HELP}; keeps energies, too")
    parser.add_argument("--draws", type=int, default=5, help="number of draws of examples, from 0 on")
    parser.add_argument("--network", choices=LADDERS, nargs="*", default=list(LADDERS))
    parser.add_argument("--method", nargs="*", help='names of criteria, or "uniform"; by default all')
    parser.add_argument("--rounding", choices=ROUNDINGS, nargs="*", default=["nearest"])
    parser.add_argument("--out", type=Path, required=True, help="results file, one JSON record per line")
    return parser.parse_args()


def one(subject: Any, network: str, draw: int, method: str, rounding: str) -> dict[str, Any]:
    """One method at all limits."""
    own: Subject = subject(network, draw)
    record: dict[str, Any] = {"network": network, "draw": draw, "method": method, "rounding": rounding}
    record |= {"float": own.float_accuracy(), "at": {}}
    if method != "uniform":
        energy, record["seconds"] = own.energy(method.removesuffix(CONVEX))
        energy = projected(energy) if method.endswith(CONVEX) else energy
    for bits, cost in product(BITS, COSTS):
        widths = own.uniform(bits, bits if cost == "bops" else WIDEST)  # storage counts no inputs
        if method != "uniform":
            budget = probq.Budget(limit=own.cost(widths, cost), cost=getattr(probq.cost, cost))
            chosen = probq.allocate(own.q, energy, budget, seconds=SECONDS)
            widths = {name: int(b) for name, b in chosen.widths.items()}
        record["at"][f"{cost} {bits}"] = own.scores(widths, rounding)
        if method != "uniform":
            record["at"][f"{cost} {bits}"] |= {"energy": energy(widths), "gap": chosen.gap}
    return record | {"machine": machine(), "versions": versions()}


def kind(record: dict[str, Any]) -> tuple[Any, ...]:
    """Which run a record is of."""
    return record["network"], record["draw"], record["method"], record["rounding"]


def main() -> None:
    """Make what is missing, print tables."""
    options = arguments()
    names = options.method or [
        "uniform",
        *sorted([*probq.criteria.__all__, SLOW[-1]], key=lambda n: (n in SLOW, SLOW[::-1], n)),
    ]
    quick = [name for name in names if name not in SLOW]
    parts = [quick, *([name] for name in SLOW if name in names)]
    runs = [
        (network, draw, method, rounding)
        for part in parts
        for rounding in options.rounding
        for draw in range(options.draws)
        for network in options.network
        for method in part
    ]
    subject = functools.lru_cache(2)(functools.partial(Subject, folder=options.data, kept=options.kept))
    print(tables(completed(options.out, runs, kind, functools.partial(one, subject))))


if __name__ == "__main__":
    main()
