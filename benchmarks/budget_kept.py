"""Digits: whether every decision keeps its budget. Many seeds, three budgets; the mode and 1,000 draws of each fit.

python benchmarks/budget_kept.py --seeds 20 --draws 1000 --out budget_kept.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

import probq
from probq.cli import demo
from probq.decisions.within_budget import probability_within

BUDGETS = (0.2, 0.5, 2.0)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds, from 0 on")
    parser.add_argument("--draws", type=int, default=1000, help="draws from each posterior")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of each fit")
    parser.add_argument("--out", type=Path, help="JSON file of the records")
    return parser.parse_args()


def one(seed: int, percent: float, epochs: int, draws: int) -> dict[str, Any]:
    """Fit one posterior; count the decisions over the limit."""
    torch.manual_seed(seed)
    data, net, budget = demo.digits(seed), demo.network(), probq.Budget(percent=percent)
    batches = DataLoader(data.train, batch_size=demo.BATCH, shuffle=True)
    q = probq.quantize(net, data.train.tensors[0][:64], demo.plan)
    probq.fit(q, batches, budget, epochs, seed=seed, progress=False)
    limit, mode = budget.absolute(q.layers), q.mode(budget)
    over = sum(draw.cost() > limit for draw in q.sample(draws, budget, seed=seed))
    return {
        "seed": seed,
        "budget": percent,
        "mode_percent": mode.percent(),
        "mode_over": int(mode.cost() > limit),
        "draws": draws,
        "draws_over": over,
        "probability_within": probability_within(q, budget),
    }


def table(records: list[dict[str, Any]]) -> str:
    """A row for each limit."""
    rows = ["| limit, % | fits | modes over | draws | draws over | mean BOPs of the modes, % |", "|" + "---|" * 6]
    for percent in BUDGETS:
        own = [record for record in records if record["budget"] == percent]
        mean = sum(record["mode_percent"] for record in own) / len(own)
        totals = [sum(record[key] for record in own) for key in ("mode_over", "draws", "draws_over")]
        rows.append(f"| {percent} | {len(own)} | {totals[0]} | {totals[1]:,} | {totals[2]} | {mean:.3f} |")
    return "\n".join(rows)


def main() -> None:
    """Run all, print a table, write the records."""
    options = arguments()
    runs = [(seed, percent) for seed in range(options.seeds) for percent in BUDGETS]
    records = [one(seed, percent, options.epochs, options.draws) for seed, percent in tqdm(runs)]
    print(table(records))
    if options.out:
        options.out.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
