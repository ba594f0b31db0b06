"""Is the posterior over widths calibrated? Widths, codes and data are drawn from the model itself, many times.

For every data set the probability of the true widths is recorded under the exact posterior (by enumeration), under the
best mean-field posterior (coordinate ascent) and, with `--fits`, under one fitted with `leave_one_out`. Stated
beforehand, for 200 repetitions of a network: the randomised rank of the true widths is uniform by a Kolmogorov-Smirnov
test at 0.1 %, and the sum of (came - probability) over all rungs but each quantizer's first lies within 3.3 standard
deviations. The exact posterior must pass; the others are reported as they are. Every line is one repetition; those
there are not made again.

    python benchmarks/simulation.py --repetitions 200 --out benchmarks/results_simulation.jsonl
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from probq.testing import (
    Small,
    best_mean_field,
    calibration,
    draw_from_prior,
    enumerable,
    enumerate_joint,
    fit_law,
    posterior_of,
    rank,
)
from probq.training.svi.elbo.leave_one_out import leave_one_out

KS_LEVEL, DEVIATIONS = 0.001, 3.3


def repetition(small: Small, joint: Any, number: int, steps: int) -> dict[str, Any]:
    """One data set: ranks of the true widths, and the probability of every rung and whether it was the true one."""
    generator = np.random.default_rng([7, number])
    q, x = small.quantized()
    truth, y = draw_from_prior(q, joint, generator)
    joint = joint.given(q, y)
    exact = joint.exact_widths()
    best = best_mean_field(joint, restarts=5)
    fields: dict[str, Any] = {"mean field": best.widths}
    if steps:
        torch.manual_seed(number)
        fit_law(q, partial(leave_one_out, q, x, y), steps)
        fields["fitted"] = [p.detach() for p in posterior_of(q)[0]]
    record: dict[str, Any] = {"model": small.name, "repetition": number, "truth": list(truth)}
    record["exact"] = _summary(exact, truth, generator)
    for name, widths in fields.items():
        probs = {rungs: float(np.prod([float(p[k]) for p, k in zip(widths, rungs, strict=True)])) for rungs in exact}
        record[name] = _summary(probs, truth, generator)
    return record


def _summary(probs: dict[tuple[int, ...], float], truth: tuple[int, ...], generator: Any) -> dict[str, Any]:
    pairs = [
        (sum(p for rungs, p in probs.items() if rungs[u] == k), float(truth[u] == k))
        for u in range(len(truth))
        for k in range(1, 1 + max(rungs[u] for rungs in probs))
    ]
    return {"rank": rank(probs, truth, generator), "rungs": pairs}


def verdict(records: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Rank and coverage statistics of one posterior over all repetitions of one network."""
    ranks = [r[name]["rank"] for r in records if name in r]
    pairs = [tuple(pair) for r in records if name in r for pair in r[name]["rungs"]]
    excess, deviation = calibration(pairs)
    p = float(stats.kstest(ranks, "uniform").pvalue)
    passed = p > KS_LEVEL and abs(excess) < DEVIATIONS * deviation
    return {"repetitions": len(ranks), "ks p": p, "excess": excess, "deviation": deviation, "calibrated": passed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--models", nargs="*", help="names of networks; by default all")
    parser.add_argument("--fits", type=int, default=0, help="steps of a fit for every data set; 0: none")
    parser.add_argument("--out", type=Path, default=Path("results_simulation.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    records = [json.loads(line) for line in lines]
    done = {(r["model"], r["repetition"]) for r in records}
    with options.out.open("a") as file:
        for small in enumerable():
            if options.models and small.name not in options.models:
                continue
            q, x = small.quantized()
            joint = enumerate_joint(q, x, small.targets(q, x))
            for number in range(options.repetitions):
                if (small.name, number) not in done:
                    records.append(repetition(small, joint, number, options.fits))
                    file.write(json.dumps(records[-1]) + "\n")
                    file.flush()
            mine = [r for r in records if r["model"] == small.name]
            for name in [n for n in ("exact", "mean field", "fitted") if any(n in r for r in mine)]:
                print(small.name, name, json.dumps(verdict(mine, name)), flush=True)


if __name__ == "__main__":
    main()
