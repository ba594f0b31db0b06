"""A teacher, or none: fits of the digits and of MNIST under one budget, with each kind of distillation.

For each seed a float network is trained; it is then quantized by four fits of the same epochs, seed and budget: without
a teacher, and with `probq.distillation.offline` (the float network), `online` (a copy of it that goes on learning) and
`itself` (the average of the fit's own parameters), all with weight 0.5 and temperature 2. Fits are short: 16 epochs on
the digits (the seed also splits the images), 4 on MNIST, of whose images the first 12,000 are for training. All figures
are those of integer models on test images. A record that is there already is not made again.

    python benchmarks/distillation.py --data DIR --out results_distillation.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import data
import numpy as np
import torch
from ideas import Subject, scored, subject_of
from protocol import completed
from torch import nn

import probq
from probq import distillation
from probq.cli import demo

PERCENT = 0.26  # of the float network's BOPs
EPOCHS = MappingProxyType({"convolutions": 16, "LeNet-5": 4})
TEACHERS: Mapping[str, Callable[[nn.Module], distillation.Teacher | None]] = MappingProxyType(
    {
        "none": lambda net: None,
        "offline": distillation.offline,
        "online": distillation.online,
        "itself": lambda net: distillation.itself(),
    }
)


@lru_cache(1)
def prepared(network: str, seed: int, folder: Path | None) -> Subject:
    """The float network of a seed; the last one is kept for its other fits."""
    return subject_of(network, seed, EPOCHS[network], folder)


def one(network: str, teacher: str, seed: int, folder: Path | None) -> dict[str, Any]:
    """One fit."""
    subject, budget = prepared(network, seed, folder), probq.Budget(percent=PERCENT)
    q = probq.quantize(subject.net, subject.example, demo.plan)
    fitted = subject.fit(q, budget, EPOCHS[network], teacher=TEACHERS[teacher](subject.net))
    key = {"network": network, "teacher": teacher, "seed": seed, "epochs": EPOCHS[network]}
    return key | scored(*fitted, subject)


def kind(record: dict[str, Any]) -> tuple[Any, ...]:
    """Which run a record is of."""
    return record["network"], record["teacher"], record["seed"]


def table(records: list[dict[str, Any]]) -> str:
    """A row for each network and teacher; differences from no teacher are of pairs, with a standard error."""
    lines = [
        "| network | teacher | seeds | BOPs, % | accuracy, % | loss, nats | accuracy against none | loss against none "
        "| differing |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    by_kind = {kind(record): record for record in records}
    for network in EPOCHS:
        for teacher in TEACHERS:
            own = [r for r in records if (r["network"], r["teacher"]) == (network, teacher)]
            if own:
                lines.append(row(network, teacher, own, by_kind))
    return "\n".join(lines)


def row(network: str, teacher: str, own: list[dict[str, Any]], by_kind: Mapping[Any, dict[str, Any]]) -> str:
    """One row of the table."""
    mean = {key: np.mean([record[key] for record in own]) for key in ("percent", "test", "loss")}
    cells = [network, teacher, str(len(own)), f"{mean['percent']:.3f}", f"{mean['test']:.2f}", f"{mean['loss']:.4f}"]
    for key, digits in (("test", 2), ("loss", 4)):
        pairs = [(r, by_kind.get((network, "none", r["seed"]))) for r in own if teacher != "none"]
        gains = np.array([r[key] - other[key] for r, other in pairs if other is not None])
        error = f" ± {gains.std(ddof=1) / len(gains) ** 0.5:.{digits}f}" if len(gains) > 1 else ""
        cells.append(f"{gains.mean():+.{digits}f}{error}" if len(gains) else "-")
    return "| " + " | ".join([*cells, str(sum(record["differing"] for record in own))]) + " |"


def main() -> None:
    """Make what is missing, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--network", choices=list(EPOCHS), nargs="*", default=list(EPOCHS))
    parser.add_argument("--data", type=Path, help=data.DATA_HELP)
    parser.add_argument("--out", type=Path, required=True, help="results file, one JSON record per line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = [(n, teacher, seed) for n in options.network for seed in range(options.seeds) for teacher in TEACHERS]
    print(table(completed(options.out, runs, kind, lambda *run: one(*run, options.data))))


if __name__ == "__main__":
    main()
