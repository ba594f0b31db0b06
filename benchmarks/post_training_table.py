"""The tables of the study of quantization without training, from its records."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

BITS = (2, 3, 4, 8)  # of uniform weights and inputs, whose cost is the limit
COSTS = ("bops", "storage")
WIDEST = 8  # bits of inputs where storage is the cost
ORDER = ("convolutions", "perceptron", "LeNet-5", "ResNet-8")
ROUNDINGS = ("nearest", "anew", "bias", "gpfq", "best", "learned")
DEFAULT = "default"  # the one of the last two with less loss on the examples, as `probq.post_training` chooses


def tables(records: list[dict[str, Any]]) -> str:
    """A table for each network: a row for each method and rounding, a column for each limit."""
    networks = dict.fromkeys(sorted((r["network"] for r in records), key=ORDER.index))
    return "\n\n".join(table(network, [r for r in records if r["network"] == network]) for network in networks)


def table(network: str, records: list[dict[str, Any]]) -> str:
    """Mean accuracies of uniform widths with nearest rounding, and how far every other row is ahead of them."""
    limits = [f"{cost} {bits}" for cost, bits in product(COSTS, BITS)]
    names = [f"BOPs {b}/{b}" for b in BITS] + [f"storage {b}/{WIDEST}" for b in BITS]
    head = f"| {network} | rounding | draws | seconds | {' | '.join(names)} | differing |"
    rows = [head, "|" + "---|" * (head.count("|") - 1)]
    base = {r["draw"]: r for r in records if (r["method"], r["rounding"]) == ("uniform", "nearest")}
    methods = dict.fromkeys(r["method"] for r in sorted(records, key=lambda r: r["method"] != "uniform"))
    records = [*records, *defaults(records)]
    for method, rounding in product(methods, [*ROUNDINGS, DEFAULT]):
        own = [r for r in records if (r["method"], r["rounding"]) == (method, rounding)]
        if own:
            first = (method, rounding) == ("uniform", "nearest")
            cells = [method, rounding, str(len(own)), seconds(own)]
            cells += [cell(own, {} if first else base, limit) for limit in limits]
            rows.append("| " + " | ".join([*cells, differing(own)]) + " |")
    found = [r["float"] for r in base.values()]
    return "\n".join(rows) + f"\n\nFloat: {np.mean(found):.2f} %." if found else "\n".join(rows)


def defaults(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `probq.post_training` gives: at each limit the better of two roundings, by the loss on the examples."""
    known = {(r["draw"], r["method"], r["rounding"]): r for r in records}
    found = []
    for (draw, method, rounding), best in known.items():
        learned = known.get((draw, method, "learned"))
        if rounding == "best" and learned is not None:
            at = {k: min(best["at"][k], learned["at"][k], key=lambda row: row["loss"]) for k in best["at"]}
            found.append({**best, "rounding": DEFAULT, "at": at})
    return found


def seconds(own: list[dict[str, Any]]) -> str:
    """Median time of a measurement."""
    found = [r["seconds"] for r in own if "seconds" in r]
    return f"{np.median(found):.2g}" if found else "-"


def cell(own: list[dict[str, Any]], base: dict[int, dict[str, Any]], limit: str) -> str:
    """Mean accuracy, or mean gain over the base of the same draws with its standard error."""
    kept = [r for r in own if limit in r["at"] and (not base or limit in base.get(r["draw"], {"at": {}})["at"])]
    if not kept:
        return "-"
    test = np.array([r["at"][limit]["test"] for r in kept])
    if not base:
        return f"{test.mean():.2f}"
    gained = test - np.array([base[r["draw"]]["at"][limit]["test"] for r in kept])
    error = f" ± {gained.std(ddof=1) / len(gained) ** 0.5:.2f}" if len(gained) > 1 else ""
    return f"{gained.mean():+.2f}{error}"


def differing(own: list[dict[str, Any]]) -> str:
    """Output numbers of integer models that differ from the networks', and how many could not be lowered."""
    found = [at["differing"] for r in own for at in r["at"].values() if "differing" in at]
    refused = found.count(None)
    text = str(sum(n for n in found if n is not None)) if found else "-"
    return f"{text} ({refused} not lowered)" if refused else text
