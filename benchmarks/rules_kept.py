"""Digits: whether each rule keeps its limit. Many seeds, three limits, every rule with its defaults.

For each fit: what the decided mode costs, what each tensor's most probable width would cost without a decision, and
`E[cost]` at the end of the search, all relative to the limit. A record that is there already is not made again. A fit
of 4 epochs takes about 2 s of one core, the 420 of 20 seeds about 14 minutes; after 1 or 2 epochs the networks have
learned nothing yet (10 to 20 % right).

    python benchmarks/rules_kept.py --seeds 20 --out rules_kept.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from protocol import completed
from torch.utils.data import DataLoader

import probq
from probq import rules
from probq.cli import demo
from probq.decisions.within_budget import probability_within
from probq.training.svi.budget_constraint import BudgetConstraint

BUDGETS = (0.2, 0.5, 2.0)
OPTIONS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "DualAscent": {},
        "AugmentedLagrangian": {"rule": rules.AugmentedLagrangian()},
        "PID": {"rule": rules.PID()},
        "ConstraintGuided, gradient": {"rule": rules.ConstraintGuided()},
        "ConstraintGuided, sum": {"rule": rules.ConstraintGuided(rules.gradient_plus_magnitude)},
        "ConstraintGuided, product": {"rule": rules.ConstraintGuided(rules.gradient_times_magnitude)},
        "DualAscent, probability=0.95": {"probability": 0.95},
    }
)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds, from 0 on")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of each fit")
    parser.add_argument("--out", type=Path, required=True, help="results file, one JSON record per line")
    return parser.parse_args()


def one(name: str, seed: int, percent: float, epochs: int) -> dict[str, Any]:
    """Fit one posterior, and compare its costs with the limit."""
    options = dict(OPTIONS[name])
    budget = probq.Budget(percent=percent, probability=options.pop("probability", None))
    torch.manual_seed(seed)
    data, net = demo.digits(seed), demo.network()
    batches = DataLoader(data.train, batch_size=demo.BATCH, shuffle=True)
    q = probq.quantize(net, data.train.tensors[0][:64], demo.plan)
    probq.fit(q, batches, budget, epochs, seed=seed, progress=False, **options)
    constraint = BudgetConstraint(q, budget)
    x, y = data.validation.tensors
    return {
        "rule": name,
        "seed": seed,
        "budget": percent,
        "epochs": epochs,
        "decided": q.mode(budget).cost() / constraint.limit,
        "undecided": constraint.hard() / constraint.limit,
        "expected": float(constraint.expected().detach()) / constraint.limit,
        "within": probability_within(q, budget),
        "validation": 100 * float((q(x).argmax(1) == y).double().mean()),
    }


def table(records: list[dict[str, Any]]) -> str:
    """A row for each rule."""
    rows = [
        "| rule | fits | decided over | undecided over | E[cost] over | mean decided | mean undecided | mean E[cost] | "
        "largest E[cost] | least P(cost <= limit) | validation, % |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in OPTIONS:
        own = [record for record in records if record["rule"] == name]
        if not own:
            continue
        keys = ("decided", "undecided", "expected")
        over = " | ".join(str(sum(record[key] > 1 for record in own)) for key in keys)
        means = " | ".join(f"{sum(record[key] for record in own) / len(own):.2f}" for key in keys)
        most, least = max(r["expected"] for r in own), min(r["within"] for r in own)
        right = sum(record["validation"] for record in own) / len(own)
        rows.append(f"| {name} | {len(own)} | {over} | {means} | {most:.2f} | {least:.3f} | {right:.1f} |")
    return "\n".join(rows)


def main() -> None:
    """Make what is missing, print a table."""
    options = arguments()
    runs = [(n, s, b, options.epochs) for s in range(options.seeds) for b in BUDGETS for n in OPTIONS]
    print(table(completed(options.out, runs, lambda r: (r["rule"], r["seed"], r["budget"], r["epochs"]), one)))


if __name__ == "__main__":
    main()
