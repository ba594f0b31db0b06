"""Tables of docs/results that are short and made from one record each. `--check` fails where they differ.

python benchmarks/record_tables.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import against_hgq2
import against_uniform
import budget_kept
import channels
import distillation
import draws
import growth
import ideas
import memory
import page
import post_training_table
import rank_table
import rules_kept
import selection
import sequences
import simulation
import vectors

FOLDER = Path(__file__).parent
TARGETS = MappingProxyType({"C 8x8": 1.3, "C 1x2": 0.35, "C 1x1": 0.35} | dict.fromkeys(
    ("ONNX 8x8", "ONNX 4x4", "ONNX 4x8, 2x4, 8x4, 8x8"), 0.65))  # fmt: skip
OTHER_TARGETS = MappingProxyType(
    {
        "ResNet-8": {"C 8x8": 0.8, "C 1x2": 0.4, "ONNX 8x8": 0.9},
        "DS-CNN": {"C 8x8": 1.0, "C 1x2": 0.5, "ONNX 8x8": 0.85},
    }
)
METHODS = MappingProxyType(
    {
        "mode": "mode",
        "longer": "mode, tuned for all of the members' epochs",
        "draws": "{members} draws",
        "widths": "{members} draws, tuned",
        "codes": "{members} draws of codes",
        "pair": "{members} draws, tuned for {epochs} epochs each",
        "twice": "one network under twice the budget",
    }
)
AVERAGED = (0, 1, 2)  # seeds that have every method


def records(name: str) -> Any:
    """The records of a file: a document, or one record a line."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)


def joined(head: str, rows: list[list[str]]) -> str:
    """A table of a head and rows."""
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *(f"| {' | '.join(row)} |" for row in rows)])


def inference(record: Mapping[str, Any], targets: Mapping[str, float] = TARGETS) -> str:
    """A row for each subject: its ratios at batch 1 and 64 with their quartiles, and the target, if there are any."""
    rows = []
    batches = list(dict.fromkeys(row["batch"] for row in record["rows"]))
    for subject in dict.fromkeys(row["subject"] for row in record["rows"]):
        own = [next(r for r in record["rows"] if (r["subject"], r["batch"]) == (subject, batch)) for batch in batches]
        ratios = [f"{r['ratio']:.2f} ({r['quartiles'][0]:.2f} - {r['quartiles'][1]:.2f})" for r in own]
        told = [against(subject, own, targets)] if targets else []
        rows.append([subject, *ratios, *(f"{r['microseconds']:.1f}" for r in own), *told])
    times = " | ".join(f"batch {batch}" for batch in batches)
    micro = " | ".join(f"us an example, batch {batch}" for batch in batches)
    return joined(f"| | {times} | {micro} |{' target |' if targets else ''}", rows)


def inferences() -> str:
    """A table of LeNet-5, and one of each other network."""
    names = "results_inference.json", "results_inference_networks.json"
    record = records(names[1])
    parts = [of(inference, names[0])]
    for network in dict.fromkeys(row["network"] for row in record["rows"]):
        own = [row for row in record["rows"] if row["network"] == network]
        parts.append(f"{network}:\n\n{inference({'rows': own}, OTHER_TARGETS.get(network, {}))}")
    return "\n\n".join([*parts, page.wrapped(f"Records: `{names[1]}`.")])


def against(subject: str, own: list[Mapping[str, Any]], targets: Mapping[str, float]) -> str:
    """A target, and by how much it is missed."""
    if subject not in targets:
        return "-"
    missed = [round(row["ratio"], 2) - targets[subject] for row in own if round(row["ratio"], 2) > targets[subject]]
    return f"{targets[subject]:g}" + (f" (missed by {' and '.join(f'{by:.2f}' for by in missed)})" if missed else "")


def calibrated(runs: list[dict[str, Any]]) -> str:
    """A row for each posterior over widths of each network."""
    rows = []
    for model in dict.fromkeys(run["model"] for run in runs):
        own = [run for run in runs if run["model"] == model]
        for name in ("exact", "mean field", "fitted"):
            if name in own[0]:
                v = simulation.verdict(own, name)
                excess = f"{v['excess'] / v['deviation']:.1f}"
                cells = [str(v["repetitions"]), f"{v['ks p']:.2g}", excess, "yes" if v["calibrated"] else "no"]
                rows.append([model, name, *cells])
    return joined("| network | posterior over widths | data sets | p | excess | calibrated |", rows)


def simulated() -> str:
    """Both tables of calibration."""
    parts = [
        (f"Records: `{n}`.", calibrated(records(n)))
        for n in ("results_simulation_fits.jsonl", "results_simulation.jsonl")
    ]
    return "\n\n".join(line for part in parts for line in part[::-1])


def ensembles(runs: list[dict[str, Any]]) -> str:
    """A table of every run for each budget, and means over the seeds that have all methods."""
    parts = []
    for budget in sorted({run["budget"] for run in runs}, reverse=True):
        order = list(METHODS)
        own = sorted((r for r in runs if r["budget"] == budget), key=lambda r: (r["seed"], order.index(r["method"])))
        head = (
            "| | seed | BOPs, % | held out, % | test, % | NLL | NLL scaled | Brier | ECE, % | AUROC, probability | "
            "AUROC, mutual information | differing |"
        )
        parts += [f"Limit {budget:g} %:", joined(head, [member_cells(run) for run in own])]
    means = joined("| | test, % | NLL | NLL scaled | ECE, % |", averages(runs))
    return "\n\n".join([*parts, f"Means over seeds {AVERAGED[0]} to {AVERAGED[-1]} under 0.36 %:", means])


def label(run: Mapping[str, Any]) -> str:
    """What a run is called."""
    return METHODS[run["method"]].format(**run)


def member_cells(run: Mapping[str, Any]) -> list[str]:
    """Cells of one run."""
    s, several = run["test"], len(run["percent"]) > 1
    ece = [100 * value for value in s["ece"]]
    return [
        label(run),
        str(run["seed"]),
        f"{run['total']:.3f} in all" if several else f"{run['total']:.4f}",
        f"{run['validation']['accuracy']:.2f}",
        f"{s['accuracy']:.2f}",
        f"{s['nll'][0]:.4f}",
        f"{s['nll_scaled']:.4f}",
        f"{s['brier'][0]:.4f}",
        f"{ece[0]:.2f} ({ece[1]:.2f} - {ece[2]:.2f})",
        f"{s['probability']:.3f}",
        f"{s['mutual_information']:.3f}" if "mutual_information" in s else "-",
        str(run["differing"]),
    ]


def averages(runs: list[dict[str, Any]]) -> list[list[str]]:
    """Means of the methods that every one of some seeds has; NLL also as a change from the mode's."""
    rows, first = [], None
    for method in METHODS:
        own = [r["test"] for r in runs if r["method"] == method and r["budget"] == 0.36 and r["seed"] in AVERAGED]
        if len(own) == len(AVERAGED):
            accuracy, scaled = (statistics.fmean(s[key] for s in own) for key in ("accuracy", "nll_scaled"))
            nll, ece = (statistics.fmean(s[key][0] for s in own) for key in ("nll", "ece"))
            change = "" if first is None else f" ({100 * (nll / first - 1):+.0f} %)"
            first = first or nll
            name = METHODS[method].format(members=8, epochs=1)
            rows.append([name, f"{accuracy:.3f}", f"{nll:.4f}{change}", f"{scaled:.4f}", f"{100 * ece:.2f}"])
    return rows


def of(table: Callable[[Any], str], name: str) -> str:
    """A table and where its records are."""
    return f"{table(records(name))}\n\n{page.wrapped(f'Records: `{name}`.')}"


def without_training() -> str:
    """The tables of quantization without training, other tools' rows among them."""
    names = "results_post_training.jsonl", "results_post_training_tools.jsonl"
    runs = [run for name in names if (FOLDER / name).exists() for run in records(name)]
    told = page.wrapped(f"Records: {' and '.join(f'`{name}`' for name in names)}.")
    return f"{post_training_table.tables(runs)}\n\n{told}"


PARTS: Mapping[str, Callable[[], str]] = MappingProxyType(
    {
        "against_uniform": partial(of, against_uniform.table, "results_against_uniform.jsonl"),
        "post_training": without_training,
        "sequences": partial(of, sequences.table, "results_sequences.jsonl"),
        "selection": partial(of, selection.table, "results_selection.jsonl"),
        "rank": partial(of, rank_table.table, "results_rank.jsonl"),
        "budgets_kept": partial(of, budget_kept.table, "results_budget_kept.json"),
        "draws": partial(of, draws.table, "results_draws.jsonl"),
        "rules": partial(of, rules_kept.table, "results_rules_kept.jsonl"),
        "growth": partial(of, growth.table, "results_growth.json"),
        "against_hgq2": partial(of, against_hgq2.table, "results_against_hgq2.jsonl"),
        "channels": partial(of, channels.table, "results_channels.jsonl"),
        "distillation": partial(of, distillation.table, "results_distillation.jsonl"),
        "ideas": partial(of, ideas.table, "results_ideas.jsonl"),
        "vectors": partial(of, vectors.table, "results_vectors.jsonl"),
        "memory": partial(of, memory.table, "results_memory.jsonl"),
        "inference": inferences,
        "simulation": simulated,
        "ensembles": partial(of, ensembles, "results_ensemble_lenet5.jsonl"),
    }
)

if __name__ == "__main__":
    page.main(__doc__, "record_tables.py", PARTS)
