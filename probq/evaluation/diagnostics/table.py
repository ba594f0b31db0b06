"""This module puts the posterior over widths in a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas
import torch

from probq import cost as costs
from probq.decisions.within_budget import probability_within
from probq.evaluation.diagnostics.width_draws import (
    cost_of,
    decided_widths,
    expected_costs,
    network_order,
    width_probabilities,
)
from probq.network.program.program import Program, check_posterior
from probq.network.quantizers.base import Quantizer
from probq.network.tracing.trace import uncounted_note

CONVENTION = "BOP = MACs * weight bits * input bits; percentages refer to 32-bit weights and inputs"


def table(q: Program) -> pandas.DataFrame:
    """Return the posterior over widths, a row for each quantizer in the order of the network.

    Tied quantizers share the first one's row.

    Columns, for a width `W` in bits. Where channels or weights have widths of their own, it is the width of a gate
    picked at random, so that `Var W = E[Var(W | gate)] + Var(E[W | gate])`:

    * `layer`, `kind` ("weight", "input" or both), `MACs` for one example, of all layers that use the width;
    * `P(b)`: probability of `b` bits, NaN where `b` is not on the ladder;
    * `mean bits` and `sd bits` of `W`; `entropy` in bits, the mean over gates;
    * `mode`: bits decided within `q.budget`, as in `q.mode()`, the mean over gates;
    * `cost share`: percent of the expected cost (of the first budget) that falls on the layers that use the width.

    `.attrs` holds `expected cost percent`, `not counted` (what that leaves out, in words; None: nothing), `cost` (its
    name), `temperature`, `budget` (its text, or None) and, with a budget, `P(cost<=limit)` of a draw.

    Args:
        q: a quantized network, fitted or not.

    Raises:
        ProbqError: if `q.budget` is below the cheapest reachable cost.
    """
    check_posterior(q, "table")
    probs, modes, expected = width_probabilities(q), decided_widths(q, q.budget), expected_costs(q)
    widths = sorted({bits for _, quantizer in q.named_quantizers() for bits in quantizer.ladder.bits})
    total = sum(expected.values())  # of all layers, also where the cost is that of the largest one
    rows = {}
    for name in network_order(q):
        own = {name, *(tied for tied, site in q.sites.items() if site == name)}
        users = [layer for layer in q.layers if own & {layer.weight, layer.input}]
        share = 100 * sum(expected[layer.name] for layer in users) / total if total else 0.0
        rows[name] = {
            "layer": ", ".join(layer.name for layer in users),
            "kind": ", ".join(k for k, of in (("weight", q.weight_names), ("input", q.input_names)) if own & set(of)),
            "MACs": sum(layer.macs for layer in users),
            **_law(q.quantizer(name), probs[name], widths),
            "mode": float(np.mean(modes[name])),
            "cost share": share,
        }
    frame = pandas.DataFrame.from_dict(rows, orient="index").rename_axis("quantizer")
    frame.attrs.update(_attributes(q))
    return frame


def format_table(frame: pandas.DataFrame) -> str:
    """Return what `table` gave as text in columns of fixed width, probabilities with three decimals.

    Below it stands what is not counted.
    """
    shown = frame.drop(columns="layer").rename(columns={"cost share": "cost %"})
    decimals = {"mean bits": 2, "sd bits": 2, "entropy": 2, "mode": 2, "cost %": 1}
    for column in shown.columns.difference(["kind", "MACs"]):
        digits = decimals.get(column, 3)
        shown[column] = [f"{v:.{digits}f}" if v == v else "-" for v in shown[column]]
    shown["MACs"] = [f"{macs:,}" for macs in shown["MACs"]]
    left_out = frame.attrs.get("not counted")
    return str(shown.rename_axis(None).to_string(max_colwidth=40)) + (f"\n{left_out}" if left_out else "")


def _law(quantizer: Quantizer, probs: np.ndarray, widths: list[float]) -> dict[str, float]:
    """Return the probabilities, moments and entropy of the rows `[gates, B]`."""
    bits = np.array(quantizer.ladder.bits, dtype=float)
    share = dict(zip(quantizer.ladder.bits, probs.mean(0), strict=True))
    mean = probs @ bits
    variance = (probs @ bits**2 - mean**2).mean() + mean.var()
    entropy = -(probs * np.log2(np.where(probs > 0, probs, 1))).sum(1).mean()
    return {
        **{f"P({b})": float(share.get(b, np.nan)) for b in widths},
        "mean bits": float(mean.mean()),
        "sd bits": float(np.sqrt(max(variance, 0.0))),
        "entropy": float(abs(entropy)),
    }


def _attributes(q: Program) -> dict[str, Any]:
    cost = cost_of(q)
    with torch.no_grad():
        total = float(q.expected_cost(q.cost_tables(cost)))
    attributes = {
        "expected cost percent": costs.percent(total, q.layers, cost),
        "not counted": uncounted_note(q.layers, q.uncounted) if q.uncounted else None,
        "cost": costs.name(cost),
        "temperature": q.temperature,
        "budget": None if q.budget is None else repr(q.budget),
    }
    if q.budget is not None:
        attributes["P(cost<=limit)"] = probability_within(q, q.budget)
    return attributes
