"""The tables of docs/results/accuracy.md, made from the records of accuracies. `--check` fails where they differ.

python benchmarks/table.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import page

FOLDER = Path(__file__).parent
HEAD = (
    "| method | limit or widths | seeds | **test, %** | float test, % | BOPs, % | limit kept | differing | epochs "
    "| profile, temperature |\n|---|---|---|---|---|---|---|---|---|---|"
)
CONVENTION = (
    "BOPs: MACs x weight bits x input bits, relative to 32 x 32 bits everywhere, the network's own input with 8 bits. "
    "Test accuracy: mean and standard deviation over seeds; of the integer model for probq, of a float32 simulation "
    "for Brevitas. Differing: output numbers of the integer model that are not exactly those of `q(x)`, over all runs. "
    "Epochs: of the float network, of the method, and of a second tuning at the decided widths, if any; what counts is "
    "the state after the last one. Limit kept: whether the cost of every run is within the limit."
)


class Published(NamedTuple):
    """A figure from a paper."""

    method: str
    widths: str
    test: str
    float_test: str
    percent: str
    source: str


class Section(NamedTuple):
    """One table."""

    title: str
    file: str
    protocol: str
    published: tuple[Published, ...]


RELAXED = "C. Louizos et al., 2019, Relaxed Quantization; BOPs computed here"
BAYESIAN = "M. van Baalen et al., 2020, Bayesian Bits; 100 epochs"
SECTIONS = (
    Section(
        "MNIST, LeNet-5",
        "results_mnist_lenet5.jsonl",
        "Protocol: 55,000 training images scaled to [0, 1] and not augmented, 5,000 held out by the seed, batch 128, "
        "Adam from 1e-3 with a cosine schedule, dropout 0.25 and 0.5 before the linear layers, bfloat16 autocast. More "
        "on all: the last tuning saw the held-out images too, as nothing was left to decide. Float smoothing: share of "
        "the float network's labels spread over all classes.",
        (
            Published("float", "32/32", "99.36", "99.36", "100", RELAXED),
            Published("Relaxed Quantization ST", "4/4", "99.39", "99.36", "1.73", RELAXED),
            Published("Relaxed Quantization ST", "2/2", "99.37", "99.36", "0.517", RELAXED),
            Published("Bayesian Bits, with pruning", "learned", "99.30", "-", "0.36", BAYESIAN),
        ),
    ),
    Section(
        "CIFAR-10 (JPEG-coded), ResNet-8",
        "results_cifar_resnet8.jsonl",
        "Protocol: 45,000 training images scaled to [0, 1], a black border of 4 pixels, random crop and flip, 5,000 "
        "held out by the seed, batch 128, Adam from 1e-3 with a cosine schedule, bfloat16 autocast. The images lost "
        "detail to JPEG: compare the rows with each other only, not with published figures.",
        (),
    ),
)
SAME = ("method", "budget", "uniform", "rule", "profile", "search", "evaluations", "temperature", "own", "epochs")
SAME += ("more", "float_epochs", "width", "images")
USUAL = MappingProxyType({"search": 0.5, "evaluations": 100})


def groups(records: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Runs that differ in their seed only, in a fixed order; runs without a test are left out."""
    result: dict[str, list[Mapping[str, Any]]] = {}
    for record in sorted(records, key=order):
        if test(record) is not None:
            result.setdefault(json.dumps([record.get(name) for name in SAME]), []).append(record)
    return result


def order(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Learned widths first, then fixed ones, then other methods; within them the tightest limit first."""
    fixed = record.get("uniform")
    first = (not record["method"].startswith("probq"), bool(fixed), fixed or [record["budget"]])
    return (*first, record["method"], record.get("rule", ""), json.dumps([record.get(n) for n in SAME]), record["seed"])


def test(record: Mapping[str, Any]) -> float | None:
    """Test accuracy in percent, if the test set was opened."""
    return record.get("integer_test", record.get("simulated_test"))


def spread(values: list[float]) -> str:
    """Mean and standard deviation of a sample."""
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def cost(runs: list[Mapping[str, Any]]) -> str:
    """Decided costs from the least to the greatest."""
    least, most = (f"{f(run['percent'] for run in runs):.4f}" for f in (min, max))
    return least if least == most else f"{least} - {most}"


def kept(runs: list[Mapping[str, Any]]) -> str:
    """Whether every run keeps its limit."""
    if runs[0].get("uniform"):
        return "-"
    over = sum(run["percent"] > run["budget"] for run in runs)
    return "no" + f" ({over} of {len(runs)} over)" if over else "yes"


def options(run: Mapping[str, Any]) -> dict[str, str]:
    """What a run was given beside the protocol: shares of search and numbers of evaluations, and its own options."""
    other = {name: run[name] for name, usual in USUAL.items() if run.get(name, usual) != usual}
    other |= {name: value for name, value in (run.get("own") or {}).items() if name != "temperature"}
    return {n.replace("_", " "): value if isinstance(value, str) else f"{value:g}" for n, value in other.items()}


def row(runs: list[Mapping[str, Any]]) -> str:
    """One row of a table."""
    run, tests = runs[0], [float(test(run) or 0) for run in runs]
    fixed = run.get("uniform")
    rule = "" if fixed or run.get("rule", "DualAscent") == "DualAscent" else f", {run['rule']}"
    seeds = len({run["seed"] for run in runs})
    cells = (
        run["method"]
        + rule
        + ("" if run["method"] != "probq" else ", fixed widths" if fixed else ", learned widths")
        + "".join(f", {name} {value}" for name, value in options(run).items()),
        f"{fixed[0]}/{fixed[1]}" if fixed else f"{run['budget']:g} %",
        str(seeds) if seeds == len(runs) else f"{seeds} ({len(runs)} runs)",
        f"**{spread(tests)}**" + (" (simulated)" if "simulated_test" in run else ""),
        spread([run["float_test"] for run in runs]),
        cost(runs),
        kept(runs),
        str(sum(run["differing"] for run in runs)) if "differing" in run else "-",
        " + ".join(str(run[name]) for name in ("float_epochs", "epochs", "more") if run.get(name)),
        f"{run['profile']}, {run['temperature']:g}" if "profile" in run else "-",
    )
    return f"| {' | '.join(cells)} |"


def made_with(records: list[Mapping[str, Any]]) -> str:
    """Machines and versions of all runs."""
    machines = sorted({record.get("machine", "not recorded") for record in records})
    versions: dict[str, set[str]] = {}
    for record in records:
        for name, version in record["versions"].items():
            versions.setdefault(name, set()).add(version)
    listed = ", ".join(f"{name} {' / '.join(sorted(found))}" for name, found in sorted(versions.items()))
    return f"Machine: {'; '.join(machines)}. Versions: {listed}."


def section(about: Section, folder: Path) -> str:
    """One table with its heading."""
    path = folder / about.file
    records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()] if path.exists() else []
    rows = [row(runs) for runs in groups(records).values()]
    for p in about.published:
        cells = (f"{p.method} (published: {p.source})", p.widths, "-", p.test, p.float_test, p.percent, *4 * ("-",))
        rows.append(f"| {' | '.join(cells)} |")
    table = "\n".join([HEAD, *rows]) if rows else "No runs yet."
    lines = [
        f"## {about.title}",
        page.wrapped(about.protocol),
        table,
        *([page.wrapped(made_with(records))] if records else []),
    ]
    return "\n\n".join([*lines, f"Records: `{about.file}`."])


def generated(folder: Path = FOLDER) -> str:
    """All that stands between the markers."""
    return "\n\n".join([page.wrapped(CONVENTION), *(section(about, folder) for about in SECTIONS)])


if __name__ == "__main__":
    page.main(__doc__, "table.py", {"accuracy": generated})
