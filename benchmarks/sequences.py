"""Language models, rows of digits, detectors, finer images: integers at 8/8, 4/4 and learned widths against float.

For each network and seed a float network is trained once. Uniform widths (of weights/inputs) and learned ones, under a
limit of just what the uniform widths cost, are then fitted alike, from that network and with the defaults of
`probq.fit`. Scores are those of the integer models on test data, which is opened once. `differing` counts outputs of
the integer models that are not those of the network at its mode, over all test data, and `exported` examples whose
outputs in generated C and ONNX Runtime are not the integer model's, of 64. A record that is there already is not made
again.

    python benchmarks/sequences.py --seeds 0 1 2 --out results_sequences.jsonl
    python benchmarks/sequences.py --seeds 0 --task "GRU, rows of digits" --widths 4 4 --out results_sequences.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocol import completed, exported, machine, versions
from sequence_tasks import TASKS
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

import probq

WIDTHS = ((8, 8), (4, 4))  # of weights and inputs, in bits
EXPORTED = 64  # test examples that exported models are compared on


class Shuffled:
    """Batches of structures of tensors, in a new order each pass."""

    def __init__(self, x: Any, y: Any, batch: int) -> None:
        self.x, self.y, self.batch = x, y, batch
        self.dataset = range(len(x))

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for part in torch.randperm(len(self.dataset)).split(self.batch):
            yield tree_map(lambda tensor: tensor[part], (self.x, self.y))  # noqa: B023


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--task", choices=TASKS, nargs="*", default=list(TASKS))
    parser.add_argument("--widths", type=int, nargs=2, action="append", help="of weights and inputs; default: all")
    parser.add_argument("--out", type=Path, required=True, help="results file, one JSON record per line")
    return parser.parse_args()


@lru_cache(maxsize=1)
def trained(task: str, seed: int) -> tuple[nn.Module, Any, float]:
    """A float network, its data, and its score on the test."""
    about = TASKS[task]
    torch.manual_seed(seed)
    net, parts = about.make(), about.data(seed)
    batches = Shuffled(*parts[0], about.batch)
    optimizer = torch.optim.Adam(net.parameters(), about.rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, about.float_epochs * len(batches))
    for _ in range(about.float_epochs):
        for x, y in batches:
            optimizer.zero_grad()
            about.loss(net(x), y).backward()
            optimizer.step()
            cosine.step()
    x, y = parts[2]
    return net, parts, about.score(outputs(net.eval(), x), y)


@torch.no_grad()
def outputs(function: Any, x: torch.Tensor) -> Any:
    """Outputs of a function of inputs, a few at a time."""
    return tree_map(lambda *parts: torch.cat(parts), *(function(part) for part in x.split(500)))


def one(task: str, method: str, widths: tuple[int, int], seed: int) -> dict[str, Any]:
    """Uniform widths, or learned ones of at most their cost."""
    about, (net, parts, score) = TASKS[task], trained(task, seed)
    (x, y), held, (test, truth) = parts
    example = x[: about.batch]
    q, budget = probq.quantize(net, example, probq.uniform(*widths)), None
    if method == "learned":
        q, budget = probq.quantize(net, example), probq.Budget(limit=q.mode().cost())
    options = {"likelihood": about.likelihood(), "validation": [held]}
    probq.fit(q, Shuffled(x, y, about.batch), budget, about.epochs, seed=seed, progress=False, **options)
    mode = q.mode(budget)
    model = probq.lower(q, mode)
    integers = outputs(lambda part: real(model, part), test)
    simulated = outputs(q, test)
    differing = sum(
        int((a.float() != b.float()).sum()) for a, b in zip(tree_leaves(integers), tree_leaves(simulated), strict=True)
    )
    return {
        **{"task": task, "method": method, "weight": widths[0], "input": widths[1], "seed": seed},
        **{"float": score, "score": about.score(integers, truth), "percent": mode.percent()},
        **{"epochs": about.epochs, "float_epochs": about.float_epochs, "differing": differing},
        "exported": exported(model, ("c", "onnx"), test[:EXPORTED]),
        "widths": {tensor: int(bits) for tensor, bits in mode.widths.items()},
        **{"machine": machine(), "versions": versions()},
    }


def real(model: probq.IntegerModel, x: torch.Tensor) -> Any:
    """Outputs of an integer model in units of the network's."""
    return tree_map(torch.from_numpy, model.real_output(model(x.numpy())))


def kind(record: dict[str, Any]) -> tuple[Any, ...]:
    """Which run a record is of: the arguments of `one`."""
    return record["task"], record["method"], (record["weight"], record["input"]), record["seed"]


def table(records: list[dict[str, Any]]) -> str:
    """A row for each network and cost: means and standard deviations over seeds."""
    rows = [
        "| network | score on the test | uniform widths | BOPs, % | learned, BOPs, % | seeds | float | uniform "
        "| learned | learned - uniform | differing |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        for widths in WIDTHS:
            own = [r for r in records if (r["task"], r["weight"], r["input"]) == (task, *widths)]
            if own:
                rows.append(row(task, widths, own))
    return "\n".join(rows)


def row(task: str, widths: tuple[int, int], own: list[dict[str, Any]]) -> str:
    """One row of the table; the difference is of pairs, with its standard error."""
    uniform, learned = ({r["seed"]: r for r in own if r["method"] == method} for method in ("uniform", "learned"))

    def spread(values: list[float]) -> str:
        error = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        return f"{np.mean(values):.2f}{error}" if values else "-"

    gains = np.array([learned[seed]["score"] - r["score"] for seed, r in uniform.items() if seed in learned])
    error = f" ± {gains.std(ddof=1) / len(gains) ** 0.5:.2f}" if len(gains) > 1 else ""
    costs = [[r["percent"] for r in runs.values()] for runs in (uniform, learned)]
    differing = sum(r["differing"] + sum(r["exported"].values()) for r in own)
    cells = [
        *(task, TASKS[task].unit, f"{widths[0]}/{widths[1]}"),
        *(f"{np.mean(cost):.3f}" if cost else "-" for cost in costs),
        *(str(len(uniform)), spread([r["float"] for r in uniform.values()])),
        *(spread([r["score"] for r in runs.values()]) for runs in (uniform, learned)),
        *(f"{gains.mean():+.2f}{error}" if len(gains) else "-", str(differing)),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Make what is missing, print a table."""
    options = arguments()
    chosen = [tuple(widths) for widths in options.widths or WIDTHS]
    runs = [
        (task, method, widths, seed)
        for seed in options.seeds
        for task in options.task
        for widths in chosen
        for method in ("uniform", "learned")
        if method == "uniform" or widths != WIDTHS[0]  # nothing wider than 8 bits is learned
    ]
    print(table(completed(options.out, runs, kind, one)))


if __name__ == "__main__":
    main()
