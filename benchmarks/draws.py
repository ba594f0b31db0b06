"""Networks drawn within a budget, as a fit leaves them, against the network of the decision.

The digits' convolutions, perceptron and residual network of `rank.py` under its limits, 16 epochs of fit, and LeNet-5
of `trained_networks.py` on MNIST under 0.36 %, 8 epochs, all on default ladders and by the defaults of `fit`, with
held-out images for `decide`. Of each posterior 64 draws within the budget are taken, and nothing is trained further.
Accuracies are those on images that no fit saw, the first 2,000 of MNIST's. "8 draws" averages the probabilities of the
first eight.

    python benchmarks/draws.py --data DIR --kept FOLDER --seeds 3 --out draws.jsonl
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import data
import numpy as np
import rank
import torch
import trained_networks
from protocol import BATCH, HELD_OUT, accuracy, completed, in_parts, machine, versions

import probq

DRAWS, MEMBERS = 64, 8
NEAR, FAR = 2.0, 5.0  # points behind the decision that nine of ten draws, and all, may be
LIMITS = {**rank.LIMITS, "LeNet-5": (0.36,)}
TARGETED = ("convolutions", "LeNet-5")
IMAGES = 2000


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=data.DATA_HELP)
    parser.add_argument("--kept", type=Path, help=trained_networks.HELP)
    parser.add_argument("--network", choices=LIMITS, nargs="*", default=list(LIMITS))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--out", type=Path, required=True, help="results file, one JSON record per line")
    return parser.parse_args()


def digits(network: str, seed: int) -> tuple[probq.Quantized, Any, Any, Any, int]:
    """A quantized network, its batches, held-out ones, images to judge by, and the epochs of its fit."""
    own = rank.subject(network, seed, rank.EPOCHS)
    (x, y), decide = own.judge, own.decide
    q = probq.quantize(own.q.net, own.examples[0][0], likelihood=probq.likelihoods.categorical)
    return q, own.batches, decide, (x[rank.DECIDE :], y[rank.DECIDE :]), rank.EPOCHS


def lenet5(folder: Path, kept: Path, seed: int) -> tuple[probq.Quantized, Any, Any, Any, int]:
    """The same of LeNet-5."""
    net = trained_networks.trained("LeNet-5", folder, kept)
    x, y = data.mnist(folder, True)
    torch.manual_seed(seed)
    batches = data.Shuffled(x[:-HELD_OUT].contiguous(memory_format=torch.channels_last), y[:-HELD_OUT], BATCH)
    held = list(zip(x[-HELD_OUT:].split(1000), y[-HELD_OUT:].split(1000), strict=True))
    return probq.quantize(net, x[:BATCH]), batches, held, trained_networks.images("LeNet-5", folder, False, IMAGES), 8


def one(folder: Path, kept: Path, network: str, limit: float, seed: int) -> dict[str, Any]:
    """The record of one fit."""
    q, batches, held, (x, y), epochs = lenet5(folder, kept, seed) if network == "LeNet-5" else digits(network, seed)
    budget = probq.Budget(percent=limit)
    probq.fit(q, batches, budget, epochs, validation=held, seed=seed, progress=False)
    drawn = q.sample(DRAWS, budget, seed=seed)
    outputs = [in_parts(q.at(a), x) for a in drawn]
    average = torch.stack([z.softmax(-1) for z in outputs[:MEMBERS]]).mean(0)
    record = {"network": network, "limit": limit, "seed": seed, "decision": accuracy(in_parts(q.at(q.mode()), x), y)}
    record |= {"draws": sorted(accuracy(z, y) for z in outputs), "average": accuracy(average, y), "gap": q.mode().gap}
    record["distinct"] = len({tuple(a.widths.values()) for a in drawn})
    return {**record, "machine": machine(), "versions": versions()}


def kept(record: dict[str, Any]) -> bool:
    """Whether a record's draws are as near as they should be."""
    behind = record["decision"] - np.asarray(record["draws"])
    return bool((behind <= NEAR).mean() >= 0.9 and behind.max() <= FAR)


def table(runs: list[dict[str, Any]]) -> str:
    """A row for each fit."""
    head = "| network | limit, % | seed | decision, % | draws: least, tenth, half, % | 8 draws, % | distinct | near |"
    lines = [head, "|---" * 8 + "|"]
    for run in sorted(runs, key=lambda r: (list(LIMITS).index(r["network"]), r["limit"], r["seed"])):
        shares = ", ".join(f"{v:.1f}" for v in np.quantile(run["draws"], [0, 0.1, 0.5]))
        cells = [run["network"], f"{run['limit']:g}", str(run["seed"]), f"{run['decision']:.1f}", shares]
        cells += [f"{run['average']:.1f}", str(run["distinct"]), "yes" if kept(run) else "no"]
        lines.append(f"| {' | '.join(cells)} |")
    own = [run for run in runs if run["network"] in TARGETED]
    told = f"Near in {sum(map(kept, own))} of {len(own)} fits of {' and '.join(TARGETED)}."
    return "\n".join(lines) + f"\n\n{told}"


if __name__ == "__main__":
    given = arguments()
    runs = [(n, limit, s) for s in range(given.seeds) for n in given.network for limit in LIMITS[n]]
    make = functools.partial(one, given.data, given.kept)
    print(table(completed(given.out, runs, lambda r: (r["network"], r["limit"], r["seed"]), make)))
