"""Tables of how well predictors rank choices of widths, from the records of rank.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
from scipy.stats import kendalltau

Cell: TypeAlias = tuple[str, float]  # a network and a limit in percent
Records: TypeAlias = list[dict[str, Any]]


def truths(records: Records) -> dict[Cell, np.ndarray]:
    """True losses `[seeds, choices]` of each network and limit."""
    found: dict[Cell, list[list[float]]] = {}
    for record in sorted((r for r in records if r["kind"] == "truth"), key=lambda r: r["seed"]):
        found.setdefault((record["network"], record["limit"]), []).append(record["losses"])
    return {cell: np.array(found[cell]) for cell in sorted(found)}


def predicted(records: Records) -> dict[str, dict[Cell, np.ndarray]]:
    """What each predictor says `[seeds, choices]` in each cell."""
    found: dict[str, dict[Cell, list[list[float]]]] = {}
    for record in sorted((r for r in records if r["kind"] == "predictor"), key=lambda r: r["seed"]):
        for name, rows in record["values"].items():
            for limit, values in rows.items():
                found.setdefault(name, {}).setdefault((record["network"], float(limit)), []).append(values)
    return {name: {cell: np.array(rows) for cell, rows in of.items()} for name, of in found.items()}


def tau(values: np.ndarray, losses: np.ndarray) -> float:
    """Kendall's rank correlation, which counts ties (tau-b); 0 for a predictor that tells no two choices apart."""
    return 0.0 if len(np.unique(values)) == 1 else float(kendalltau(values, losses).statistic)


def of_favourite(values: np.ndarray, losses: np.ndarray) -> float:
    """The true loss of the choice that is predicted to be best, the mean of several that are."""
    return float(losses[values == values.min()].mean())


def ceiling(losses: np.ndarray) -> list[float]:
    """How well the training of one seed ranks the mean of the others, for each seed."""
    seeds = range(len(losses))
    return [tau(losses[s], losses[[o for o in seeds if o != s]].mean(0)) for s in seeds] if len(losses) > 1 else []


def listed(values: Iterable[float]) -> str:
    """A mean, and in brackets what it is of."""
    several = list(values)
    return f"{np.mean(several):.2f} ({', '.join(f'{v:.2f}' for v in several)})" if several else "-"


def joined(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def table(records: Records) -> str:
    """Return the tables for each length of the float training."""
    lengths = sorted({record["float_epochs"] for record in records})
    return "\n\n".join(of_length([r for r in records if r["float_epochs"] == length], length) for length in lengths)


def of_length(records: Records, length: int) -> str:
    """Return a table of the truths, one of rank correlations, and one of the true losses of favourites."""
    true, says = truths(records), predicted(records)
    floats = {c: np.mean([r["float"] for r in records if (r["network"], r.get("limit")) == c]) for c in true}
    about = [
        [cell[0], f"{cell[1]:g}", str(losses.shape[1]), str(len(losses)), f"{floats[cell]:.3f}"]
        + [f"{np.quantile(losses.mean(0), share):.3f}" for share in (0, 0.5, 1)]
        + [listed(ceiling(losses))]
        for cell, losses in true.items()
    ]
    head = ["network", "limit, %", "choices", "seeds", "float loss", "best", "median", "worst", "one seed's tau"]
    parts = [f"**Float networks of {length} epochs.** Truth, in nats:", joined(head, about)]
    if says:
        parts += ["Kendall's tau with the truth, the mean and each seed:", correlations(true, says)]
        parts += ["True loss of each predictor's favourite in nats, the mean over seeds:", favourites(true, says)]
    return "\n\n".join(parts)


def correlations(true: dict[Cell, np.ndarray], says: dict[str, dict[Cell, np.ndarray]]) -> str:
    """A row for each predictor, the best mean first."""
    rows = []
    for name, of in says.items():
        found = {c: [tau(row, losses.mean(0)) for row in of[c]] for c, losses in true.items() if c in of}
        means = [float(np.mean(taus)) for taus in found.values()]
        rows.append((means, [name, *(listed(found.get(cell, [])) for cell in true)]))
    return ordered(true, rows, lowest=False)


def favourites(true: dict[Cell, np.ndarray], says: dict[str, dict[Cell, np.ndarray]]) -> str:
    """A row for each predictor, the one whose favourites are nearest to the best choices first."""
    rows = []
    for name, of in says.items():
        found = {
            c: float(np.mean([of_favourite(row, losses.mean(0)) for row in of[c]]))
            for c, losses in true.items()
            if c in of
        }
        cells = [f"{found[cell]:.3f}" if cell in found else "-" for cell in true]
        rows.append(([towards_median(loss, true[cell].mean(0)) for cell, loss in found.items()], [name, *cells]))
    return ordered(true, rows, lowest=True)


def towards_median(loss: float, losses: np.ndarray) -> float:
    """How far a loss is from the best one, as a share of the median's distance from it."""
    return float((loss - losses.min()) / (np.median(losses) - losses.min()))


def ordered(true: dict[Cell, np.ndarray], rows: list[tuple[list[float], list[str]]], lowest: bool) -> str:
    """A table of rows in the order of their means over all cells, which are its last column."""
    last = "mean distance (0 best, 1 median)" if lowest else "mean"
    head = ["predictor", *(f"{network}, {limit:g} %" for network, limit in true), last]
    whole = [(float(np.mean(means)), cells) for means, cells in rows if len(means) == len(true)]
    whole.sort(key=lambda row: row[0] if lowest else -row[0])
    partly = [[*cells, "-"] for means, cells in rows if len(means) < len(true)]
    return joined(head, [[*cells, f"{mean:.2f}"] for mean, cells in whole] + partly)
