"""Random pairwise energies of a deep perceptron: `probq.allocate` against SCIP and OR-Tools CP-SAT, 60 seconds each.

Every solver chooses among 3 widths for each of 52 quantizers at the same limit. A line says which least
energy it found, and how far below that its proven bound is. SCIP and OR-Tools come with the extra `benchmarks`.

    python benchmarks/solvers.py --seconds 60
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import numpy as np
import torch
from torch import nn

import probq
from probq.codebooks import ladder

RUNGS = (2, 4, 8)
UNIT = 1e6  # of integer energies in CP-SAT
CASES = (
    (0.02, 1.0),
    (0.02, 2.0),
    (0.1, 1.0),
    (0.1, 2.0),
)  # scale of pairs beside unary energies of 1, limit in percent
Found = tuple[float, float]  # least energy and distance to the proven bound


def network(layers: int) -> probq.Quantized:
    """A perceptron of layers of 6 to 8 neurons."""
    torch.manual_seed(0)
    parts = itertools.chain(*((nn.Linear(6 + k % 3, 6 + (k + 1) % 3), nn.ReLU()) for k in range(layers)))
    plan = probq.Plan(weight=ladder(*RUNGS), input=ladder(*RUNGS, signed=False))
    return probq.quantize(nn.Sequential(*parts), torch.rand(8, 6), plan)


def random_energy(q: probq.Quantized, scale: float) -> probq.Energy:
    """Unary energies that halve from rung to rung, and normal ones of all pairs, 0 at the widest rungs."""
    generator = np.random.default_rng(0)
    names, widths = zip(*((n, z.ladder.bits) for n, z in q.named_sites() if len(z.ladder) > 1), strict=True)
    halves = 2.0 ** -np.arange(len(RUNGS) - 1)
    unary = [np.append(np.sort(generator.exponential(1, len(halves)) * halves)[::-1], 0.0) for _ in names]
    pairs = scale * generator.normal(size=(len(names) * len(RUNGS),) * 2)
    pairs += pairs.T
    for k in range(len(names)):
        own = slice(len(RUNGS) * k, len(RUNGS) * (k + 1))
        pairs[own, own] = pairs[own.stop - 1] = pairs[:, own.stop - 1] = 0
    return probq.Energy(names, widths, tuple(unary), pairs)


def by_allocate(q: probq.Quantized, energy: probq.Energy, budget: probq.Budget, seconds: float) -> Found:
    """A local search, then HiGHS from there."""
    a = probq.allocate(q, energy, budget, seconds=seconds)
    return energy(a.widths), float(a.gap or 0.0)


def terms(q: probq.Quantized, energy: probq.Energy) -> tuple[list[Any], list[Any]]:
    """Energies and costs as `(coefficient, (name, rung), (name, rung) or None)`."""
    energies: list[Any] = [
        (float(v), (n, k), None) for n, row in zip(energy.names, energy.unary, strict=True) for k, v in enumerate(row)
    ]
    for one, other in itertools.combinations(energy.names, 2):
        block = energy.block(one, other)
        energies += [(float(block[k, m]), (one, k), (other, m)) for k, m in zip(*np.nonzero(block), strict=True)]
    costs = []
    for layer, table in q.cost_tables():
        for k, m in itertools.product(*map(range, table.shape)):
            costs.append((float(table[k, m]), (layer.weight, k), (layer.input, m)))
    return energies, costs


def by_scip(q: probq.Quantized, energy: probq.Energy, budget: probq.Budget, seconds: float) -> Found:
    """SCIP on products of binary variables."""
    from pyscipopt import Model, quicksum

    model = Model()
    model.hideOutput()
    model.setParam("limits/time", seconds)
    x = {(n, k): model.addVar(vtype="B") for n, z in q.named_sites() for k in range(len(z.ladder))}
    for name, quantizer in q.named_sites():
        model.addCons(quicksum(x[name, k] for k in range(len(quantizer.ladder))) == 1)
    energies, costs = terms(q, energy)
    least = model.addVar(lb=None)
    model.addCons(quicksum(c * x[a] * (x[b] if b else 1) for c, a, b in energies) <= least)
    model.addCons(quicksum(c * x[a] * x[b] for c, a, b in costs) <= budget.absolute(q.layers))
    model.setObjective(least)
    model.optimize()
    return model.getPrimalbound(), model.getPrimalbound() - model.getDualbound()


def by_cp_sat(q: probq.Quantized, energy: probq.Energy, budget: probq.Budget, seconds: float) -> Found:
    """OR-Tools CP-SAT with two workers on integer energies."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    x = {(n, k): model.new_bool_var("") for n, z in q.named_sites() for k in range(len(z.ladder))}
    for name, quantizer in q.named_sites():
        model.add_exactly_one(x[name, k] for k in range(len(quantizer.ladder)))
    products: dict[Any, Any] = {}

    def product(a: Any, b: Any) -> Any:
        key = frozenset((a, b))
        if key not in products:
            products[key] = both = model.new_bool_var("")
            model.add_implication(both, x[a])
            model.add_implication(both, x[b])
            model.add_bool_or(both, x[a].negated(), x[b].negated())
        return products[key]

    energies, costs = terms(q, energy)
    model.add(sum(int(c) * product(a, b) for c, a, b in costs) <= int(budget.absolute(q.layers)))
    model.minimize(sum(round(UNIT * c) * (product(a, b) if b else x[a]) for c, a, b in energies))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds, solver.parameters.num_workers = seconds, 2
    solver.solve(model)
    found = solver.objective_value / UNIT
    return found, found - solver.best_objective_bound / UNIT


def main() -> None:
    """Print a line for each case and solver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each solver and case")
    parser.add_argument("--layers", type=int, default=26, help="linear layers, two quantizers each but for the first")
    options = parser.parse_args()
    q = network(options.layers)
    print("| pairs | limit, % | solver | least energy | gap | seconds |\n|---|---|---|---|---|---|")
    for scale, percent in CASES:
        energy, budget = random_energy(q, scale), probq.Budget(percent=percent)
        for solve in (by_allocate, by_scip, by_cp_sat):
            start = time.perf_counter()
            least, gap = solve(q, energy, budget, options.seconds)
            name = solve.__name__.removeprefix("by_")
            print(f"| {scale} | {percent} | {name} | {least:.4f} | {gap:.3f} | {time.perf_counter() - start:.0f} |")


if __name__ == "__main__":
    main()
