"""Is the posterior right? Gradients and fits of every estimator against enumeration, on networks of 4 to 8 weights.

Two kinds of records, at temperature 1 and without a budget:

* `bias`: the mean of many draws of an estimator's gradient against the exact one, at one point of the posterior. `bias`
  and `exact` are Euclidean norms over the parameters of one kind, `error` is the standard error of the bias, and
  `deviation` the standard deviation of one draw.
* `fit`: a posterior fitted with one estimator against the best mean-field posterior, found by coordinate ascent on the
  enumerated joint law from 20 starts: the largest differences of the marginals of widths and of pairs (width, code),
  and both evidence lower bounds in nats. Of best posteriors that a symmetry makes equal, the nearest one counts.

"leave-one-out" is `probq.leave_one_out`, which takes many draws together. "fit" is `probq.fit` itself with its defaults
at temperature 1; it calibrates the inputs' scales first, so that its networks are not quite those of the other fits.
Records that the file already holds are not made again.

    python benchmarks/estimators.py --seeds 5 --out benchmarks/results_estimators.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor

import probq
from probq import estimators
from probq.testing import (
    Small,
    best_mean_fields,
    distance,
    enumerable,
    enumerate_joint,
    fit_law,
    law_parameters,
    posterior_of,
)
from probq.training.svi.elbo.leave_one_out import leave_one_out

ESTIMATORS = MappingProxyType(
    {
        "mean gradient": estimators.MeanGradient(),
        "second order": estimators.SecondOrder(),
        "straight through": estimators.StraightThrough(),
        "local reparametrization": estimators.LocalReparametrization(),
        "flipout": estimators.Flipout(),
        "gumbel": estimators.Gumbel(),
        "mode forward": estimators.ModeForward(),
    }
)
LEAVE_ONE_OUT = "leave-one-out"
FIT = "fit"
TOGETHER, LEAVE_ONE_OUT_ESTIMATES = 64, 40
EACH_STEP = MappingProxyType({FIT: TOGETHER, LEAVE_ONE_OUT: TOGETHER, "second order": 4, "mean gradient": 4})  # draws
OPEN = 0.3  # log-odds of the gates where gradients are compared


def loss_of(q: Any, x: Tensor, y: Tensor, name: str, draws: int) -> Callable[[], Tensor]:
    """An estimate of the negative evidence lower bound from some draws."""
    if name == LEAVE_ONE_OUT:
        return partial(leave_one_out, q, x, y, draws=draws)
    return partial(TraceMeanField_ELBO(num_particles=draws).differentiable_loss, q.model, q.guide, x, y)


def quantized(small: Small, name: str) -> tuple[Any, Tensor, Tensor]:
    """A network whose plan has an estimator, its inputs and targets."""
    q, x = small.quantized(**({"estimator": ESTIMATORS[name]} if name in ESTIMATORS else {}))
    return q, x, small.targets(q, x)


def possible(small: Small, name: str) -> bool:
    """Whether an estimator can be had on a network."""
    return name not in ESTIMATORS or not (ESTIMATORS[name].noisy and small.name == "shared weight")


def bias(small: Small, name: str, draws: int) -> dict[str, Any]:
    """The record of one estimator's gradient on one network."""
    q, x, y = quantized(small, name)
    with torch.no_grad():
        for _, quantizer in q.named_quantizers():
            quantizer.logits.fill_(OPEN)
    parameters = law_parameters(q)
    exact = torch.autograd.grad(-enumerate_joint(q, x, y).elbo(*posterior_of(q)), list(parameters.values()))
    together = TOGETHER if name == LEAVE_ONE_OUT else 1
    loss, rows = loss_of(q, x, y, name, together), []
    torch.manual_seed(0)
    for _ in range(-(-draws // together)):
        found = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
        rows.append([torch.zeros_like(e) if g is None else g for g, e in zip(found, exact, strict=True)])
    record: dict[str, Any] = {"kind": "bias", "model": small.name, "estimator": name, "draws": len(rows) * together}
    for part, is_gate in (("gates", True), ("codes", False)):
        places = [k for k, n in enumerate(parameters) if n.endswith(".logits") == is_gate]
        drawn = torch.stack([torch.cat([row[k].reshape(-1) for k in places]) for row in rows]).double()
        wanted = torch.cat([exact[k].reshape(-1) for k in places]).double()
        record[part] = {
            "bias": float((drawn.mean(0) - wanted).norm()),
            "error": float(drawn.std(0).norm()) / len(rows) ** 0.5,
            "exact": float(wanted.norm()),
            "deviation": float(drawn.std(0).norm()) * together**0.5,
        }
    return record


def fit(small: Small, name: str, seed: int, steps: int, draws: int) -> dict[str, Any]:
    """The record of one fit."""
    q, x, y = quantized(small, name)
    started = time.process_time()
    if name == FIT:
        probq.fit(q, [(x, y)], epochs=steps, temperature=1.0, seed=seed, progress=False)
    else:
        torch.manual_seed(seed)
        fit_law(q, loss_of(q, x, y, name, draws), steps)
    seconds = time.process_time() - started
    joint = enumerate_joint(q, x, y)
    best = best_mean_fields(joint)
    with torch.no_grad():
        widths, codes = posterior_of(q)
        of_widths, of_codes = distance(widths, codes, best)
        elbo = float(joint.elbo(widths, codes))
    return {
        "kind": "fit", "model": small.name, "estimator": name, "seed": seed, "steps": steps, "draws": draws,
        "widths": of_widths, "codes": of_codes, "elbo": elbo, "best": best[0].elbo, "seconds": round(seconds, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--draws", type=int, default=500, help="draws of each estimator's gradient")
    parser.add_argument("--fits", nargs="*", default=list(EACH_STEP), help="estimators to fit with")
    parser.add_argument("--out", type=Path, default=Path("results_estimators.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    records = json.loads(options.out.read_text()) if options.out.exists() else []
    done = {tuple(r.get(k) for k in ("kind", "model", "estimator", "seed")) for r in records}

    def keep(make: Callable[[], dict[str, Any]], *key: Any) -> None:
        if key not in done:
            records.append(make())
            print(json.dumps(records[-1]), flush=True)
            options.out.write_text(json.dumps(records, indent=1) + "\n")

    for small in enumerable():
        for name in filter(partial(possible, small), (*ESTIMATORS, LEAVE_ONE_OUT)):
            draws = options.draws if name in ESTIMATORS else TOGETHER * LEAVE_ONE_OUT_ESTIMATES
            keep(partial(bias, small, name, draws), "bias", small.name, name, None)
    for seed in range(options.seeds):
        for small in enumerable():
            for name in filter(partial(possible, small), options.fits):
                made = partial(fit, small, name, seed, options.steps, EACH_STEP.get(name, 4))
                keep(made, "fit", small.name, name, seed)


if __name__ == "__main__":
    main()
