"""Why pairwise energies choose badly on the digits' perceptron: all its 16,807 choices of widths are measured.

For each draw, the loss of every choice on the 512 examples of the criteria and on the test images. Energies are those
of `loss` and `clado`; some are changed: pair terms times a factor, projected, or from half of the examples. A record
holds, for each limit, what each energy chooses, what it predicts there, and what was measured.

    python benchmarks/pairwise_terms.py --out results_pairwise_terms.jsonl
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from post_training_subject import EXAMPLES, Subject
from post_training_table import BITS
from protocol import completed
from scipy.stats import spearmanr
from torch import nn
from tqdm import tqdm

import probq
from probq.criteria.clado import projected
from probq.criteria.measuring.perturbed import PerturbedNetwork

FACTORS = (0.25, 0.5, 0.75)
Table = dict[tuple[int, ...], np.ndarray]  # losses of all images at each choice of widths


def one(draw: int) -> dict[str, Any]:
    """All choices of one draw."""
    subject = Subject("perceptron", draw, None, Path("."))
    network, table, right = measured(subject)
    choices = list(table)
    losses = np.stack(list(table.values()))
    every = {
        "known": losses[:, :EXAMPLES],
        "first half": losses[:, : EXAMPLES // 2],
        "second half": losses[:, EXAMPLES // 2 : EXAMPLES],
        "test": losses[:, EXAMPLES:],
    }
    mean = {name: part.mean(1) - part.mean(1)[-1] for name, part in every.items()}  # the last one is the widest
    energies = changed(network, {name: dict(zip(choices, values, strict=True)) for name, values in mean.items()})
    predicted = {
        name: np.array([e(dict(zip(network.names, c, strict=True))) for c in choices]) for name, e in energies.items()
    }
    predicted |= {"measured": mean["known"]}
    return {"draw": draw, "at": {f"{b}": at(subject, network, choices, b, predicted, mean, right) for b in BITS[:3]}}


def measured(subject: Subject) -> tuple[PerturbedNetwork, Table, np.ndarray]:
    """The losses of every choice, and the share of right test images."""
    known = zip(*subject.batches, strict=True)
    x, y = (torch.cat([*parts, test]) for parts, test in zip(known, subject.test, strict=True))
    network, table, right = PerturbedNetwork(subject.q, [(x, y)]), {}, []
    for choice in tqdm(list(itertools.product(*network.widths)), leave=False):
        ((output, _),) = list(network.outputs(dict(zip(network.names, choice, strict=True))))
        table[choice] = nn.functional.cross_entropy(output, y, reduction="none").double().numpy()
        right.append(float((output.argmax(1) == y)[EXAMPLES:].double().mean()))
    return network, table, 100 * np.array(right)


def pairwise(network: PerturbedNetwork, loss: dict[tuple[int, ...], float]) -> probq.Energy:
    """The energy of `clado` from measured losses."""
    widest = tuple(bits[-1] for bits in network.widths)

    def at(*moved: tuple[int, int]) -> float:
        choice = list(widest)
        for place, bits in moved:
            choice[place] = bits
        return loss[tuple(choice)]

    rungs = [(i, b) for i, bits in enumerate(network.widths) for b in bits]
    form = np.zeros((len(rungs), len(rungs)))
    for (m, one), (n, other) in itertools.combinations(enumerate(rungs), 2):
        if one[0] != other[0]:
            form[m, n] = form[n, m] = at(one, other) - at(one) - at(other)
    unary = tuple(np.array([at((i, b)) for b in bits]) for i, bits in enumerate(network.widths))
    return probq.Energy(network.names, network.widths, unary, form, "clado")


def changed(network: PerturbedNetwork, loss: dict[str, Any]) -> dict[str, probq.Energy]:
    """The energies that are compared."""
    clado = pairwise(network, loss["known"])
    assert clado.pairwise is not None
    found = {"loss": replace(clado, pairwise=None), "clado": clado, "clado, projected": projected(clado)}
    found |= {f"clado, pairs x {f:g}": replace(clado, pairwise=f * clado.pairwise) for f in FACTORS}
    found["clado, pairs >= 0"] = replace(clado, pairwise=np.maximum(clado.pairwise, 0))
    found["clado, first half"] = pairwise(network, loss["first half"])
    found["clado, second half"] = pairwise(network, loss["second half"])
    found["clado, test images"] = pairwise(network, loss["test"])
    return found


def at(
    subject: Subject,
    network: PerturbedNetwork,
    choices: list[tuple[int, ...]],
    bits: int,
    predicted: dict[str, np.ndarray],
    mean: dict[str, np.ndarray],
    right: np.ndarray,
) -> dict[str, Any]:
    """What each energy chooses at the cost of uniform widths."""
    limit = subject.cost(subject.uniform(bits, bits), "bops")
    rest = {n: b for n, b in subject.uniform(8, 8).items() if n not in network.names}
    cost = np.array([_bops(subject, rest | dict(zip(network.names, c, strict=True))) for c in choices])
    kept = np.flatnonzero(cost <= limit)
    uniform = choices.index(tuple([bits] * len(network.names)))
    record: dict[str, Any] = {"choices": len(kept), "uniform": _row(uniform, choices, mean, right)}
    for name, energy in predicted.items():
        best = int(kept[energy[kept].argmin()])
        record[name] = _row(best, choices, mean, right) | {"energy": float(energy[best])}
        record[name]["rank"] = float(spearmanr(energy[kept], mean["known"][kept]).statistic)
        record[name]["by first half"] = float(predicted["clado, first half"][best])
        record[name]["by second half"] = float(predicted["clado, second half"][best])
    return record


def _bops(subject: Subject, widths: dict[str, int]) -> float:
    return float(sum(a.macs * widths[a.weight] * widths[a.input or ""] for a in subject.q.layers))


def _row(place: int, choices: Any, mean: dict[str, np.ndarray], right: np.ndarray) -> dict[str, Any]:
    losses = {name: float(values[place]) for name, values in mean.items()}
    return {"widths": list(choices[place]), "accuracy": float(right[place]), "losses": losses}


def table(records: list[dict[str, Any]]) -> str:
    """Means over draws, at each limit a row for each energy."""
    head = "| limit | energy | predicted | measured | measured, test | accuracy, % | ahead of uniform | rank |"
    rows = [head, "|" + "---|" * (head.count("|") - 1)]
    for bits in records[0]["at"]:
        own = [r["at"][bits] for r in records]
        base = np.array([r["uniform"]["accuracy"] for r in own])
        for name in (name for name, value in own[0].items() if isinstance(value, dict)):
            each = [r[name] for r in own]
            right = np.array([e["accuracy"] for e in each])
            error = (right - base).std(ddof=1) / len(own) ** 0.5 if len(own) > 1 else np.nan
            cells = [f"{np.mean([e['energy'] for e in each]):.3f}" if "energy" in each[0] else "-"]
            cells += [f"{np.mean([e['losses'][part] for e in each]):.3f}" for part in ("known", "test")]
            cells += [f"{right.mean():.2f}", f"{(right - base).mean():+.2f} ± {error:.2f}"]
            cells += [f"{np.mean([e['rank'] for e in each]):.2f}" if "rank" in each[0] else "-"]
            rows.append(f"| {bits}/{bits} | {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=5, help="number of draws of examples, from 0 on")
    parser.add_argument("--out", type=Path, required=True, help="results file, one JSON record per line")
    options = parser.parse_args()
    records = completed(options.out, [(d,) for d in range(options.draws)], lambda r: (r["draw"],), one)
    print(table(records))


if __name__ == "__main__":
    main()
