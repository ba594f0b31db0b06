"""The tables of docs/results/estimators.md, made from the records of estimators.py. `--check` fails where they differ.

python benchmarks/estimator_table.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import page

FOLDER = Path(__file__).parent
RECORDS = "results_estimators.json"
WITHIN, PERCENT = 0.02, 1.0  # of the marginals, and of the bound: the target
OF_FITS = (
    "Fits at temperature 1, without a budget, against the best mean-field posterior (coordinate ascent on the "
    "enumerated joint law from 20 starts; of best posteriors that a symmetry makes equal, the nearest). Largest "
    "difference over all marginal probabilities and seeds, of widths and of pairs (width, code); largest gap of the "
    f"evidence lower bound in percent. Target: {WITHIN:g} and {PERCENT:g} %."
)
OF_BIASES = (
    "Bias of the gradient at one point (log-odds of the gates 0.3, codes as calibrated), Euclidean norm over the gates "
    "and over the codes, in percent of the norm of the exact gradient, with its standard error; in brackets the "
    "standard deviation of one draw, also in percent. The norm of an unbiased estimate is about its standard error."
)


def groups(records: Iterable[Mapping[str, Any]], kind: str, *names: str) -> dict[tuple[Any, ...], list[Any]]:
    """Records of one kind that have some fields in common, in the order in which the first of them was made."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    chosen = [record for record in records if record["kind"] == kind]
    models = list(dict.fromkeys(record["model"] for record in chosen))
    for record in sorted(chosen, key=lambda r: models.index(r["model"])):
        found.setdefault(tuple(record[name] for name in names), []).append(record)
    return found


def fits(records: Iterable[Mapping[str, Any]]) -> str:
    """The table of fits."""
    rows = ["| network | gradient | seeds | steps x draws | widths | codes | bound, % | within |", "|" + "---|" * 8]
    for (model, name, steps, draws), runs in groups(records, "fit", "model", "estimator", "steps", "draws").items():
        widths, codes = (max(run[key] for run in runs) for key in ("widths", "codes"))
        gap = max(100 * (run["best"] - run["elbo"]) / abs(run["best"]) for run in runs)
        within = "yes" if max(widths, codes) <= WITHIN and gap <= PERCENT else "no"
        cells = (model, name, len(runs), f"{steps} x {draws}", f"{widths:.4f}", f"{codes:.4f}", f"{gap:.3f}", within)
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def biases(records: Iterable[Mapping[str, Any]]) -> str:
    """The table of biases."""
    rows = ["| network | gradient | draws | gates | codes |", "|" + "---|" * 5]
    for (model, name), (run,) in groups(records, "bias", "model", "estimator").items():
        rows.append(f"| {model} | {name} | {run['draws']} | {relative(run['gates'])} | {relative(run['codes'])} |")
    return "\n".join(rows)


def relative(part: Mapping[str, float]) -> str:
    """A bias, its error and the deviation of one draw in percent of the exact gradient."""
    bias, error, deviation = (100 * part[name] / part["exact"] for name in ("bias", "error", "deviation"))
    return f"{bias:.0f} ± {error:.0f} ({deviation:.0f})"


def generated(folder: Path = FOLDER) -> str:
    """All that stands between the markers."""
    records = json.loads((folder / RECORDS).read_text())
    parts = [OF_FITS, fits(records), OF_BIASES, biases(records), f"Records: `{RECORDS}`."]
    return "\n\n".join(part if part.startswith("|") else page.wrapped(part) for part in parts)


if __name__ == "__main__":
    page.main(__doc__, "estimator_table.py", {"estimators": generated})
