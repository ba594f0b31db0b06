"""The page says this about a posterior."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from probq import cost as costs
from probq import plot
from probq.cost.budget import Budget, budgets
from probq.decisions.draw_warnings import is_unfitted
from probq.evaluation.diagnostics import width_draws
from probq.evaluation.diagnostics.table import table as width_table
from probq.evaluation.reporting.page import Cell, Content, Figure, Table, figure, number, table
from probq.network.program.program import Program
from probq.plot.common.style import unit
from probq.priors.energies.energy import OF_CHOICES

UNFITTED = "The posterior was never fitted: its widths are those it started from, and no ground for a decision."
DRAWN = 3  # weights whose codes are drawn, those of the most expensive layers


def content(q: Program, title: str) -> Content:
    """Return the summary, budget, facts, layers and pictures of a posterior.

    Raises:
        ProbqError: if gates or weights hold NaN, or the budget is out of reach.
    """
    frame, decided = width_table(q), width_draws.decided_widths(q, q.budget)
    macs = sum(layer.macs for layer in q.layers)
    kept, verdict = _verdict(q, decided)
    percent, name = _percent(q, decided), unit(frame.attrs["cost"])
    text = (
        f"The decided widths of {len(q.layers)} layer{'s'[: len(q.layers) != 1]} ({macs:,} multiply-accumulates for "
        f"one example) cost {percent:.4g} % of the network with 32-bit weights and inputs, counted in {name}"
    )
    if left_out := frame.attrs["not counted"]:
        text += f" ({left_out})"
    facts = [
        ("Budget", " and ".join(map(_in_words, budgets(q.budget))) or "none"),
        ("Decided cost", f"{percent:.4g} % of 32 bits"),
        ("Expected cost", f"{frame.attrs['expected cost percent']:.4g} % of 32 bits"),
        ("Temperature", f"{q.temperature:g}" + (" (the Bayesian posterior)" if q.temperature == 1 else "")),
    ]
    if (within := frame.attrs.get("P(cost<=limit)")) is not None:
        text += f"; a network drawn from the posterior keeps the budget with probability {within:.3g}"
        facts.insert(2, ("P(a draw keeps the budget)", f"{within:.4g}"))
    warnings = [UNFITTED] if is_unfitted(q) else []
    notes = [f"{note[:1].upper()}{note[1:]}." for note in q.notes]
    return Content(title, text + ".", (kept, verdict), facts, [_table(q, decided)], list(_figures(q)), warnings + notes)


def _in_words(budget: Budget) -> str:
    """Return a budget in words for a reader who does not write Python."""
    what = unit(costs.name(budget.cost))
    text = f"{budget.limit:,.0f} {what}" if budget.percent is None else f"{budget.percent:g} % of 32 bits, in {what}"
    return text if budget.probability is None else f"{text}, with probability {budget.probability:g}"


def _verdict(q: Program, decided: dict[str, Any]) -> tuple[str, str]:
    limits = budgets(q.budget)
    if not limits:
        return "open", "No budget was given."
    pairs = [(costs.total(q.layers, decided, b.cost), b.absolute(q.layers), unit(costs.name(b.cost))) for b in limits]
    texts = [f"{cost:,.0f} of at most {limit:,.0f} {name}" for cost, limit, name in pairs]
    kept = all(cost <= limit for cost, limit, _ in pairs)
    return ("kept" if kept else "broken"), f"Budget {'kept' if kept else 'not kept'}: {', '.join(texts)}."


def _percent(q: Program, decided: dict[str, Any]) -> float:
    cost = width_draws.cost_of(q)
    return float(costs.percent(costs.total(q.layers, decided, cost), q.layers, cost))


def _table(q: Program, decided: dict[str, Any]) -> Table:
    expected = width_draws.expected_costs(q)
    total = sum(expected.values()) or 1.0
    rows = [
        [
            Cell(layer.name or "(the network)"),
            Cell("×".join(map(str, layer.shape))),
            number(layer.macs, ","),
            *_width(q, layer.weight, decided),
            *_width(q, layer.input, decided),
            number(100 * expected[layer.name] / total, ".1f"),
        ]
        for layer in q.layers
    ]
    headings = ("Layer", "Weight shape", "MACs", "Weight bits", "P", "Input bits", "P", "Share of E[cost] in %")
    caption = "Layers in the order of the network; P is the probability of the decided width, the mean over its gates."
    return table(caption, headings, rows, texts=2)


def _width(q: Program, name: str | None, decided: dict[str, Any]) -> tuple[Cell, Cell]:
    """Return the decided width and its probability."""
    if name is None or name not in q:
        return Cell("float", float(costs.FLOAT_BITS)), number(None)
    quantizer = q.quantizer(name)
    bits = np.asarray(decided[name]).reshape(-1)
    cell = number(float(bits.mean()))
    if bits.min() < bits.max():
        cell = Cell(f"{bits.mean():.3g} ({bits.min()} to {bits.max()})", float(bits.mean()))
    if not quantizer.free:
        return cell, Cell("fixed", 1.0)
    probs = width_draws.probabilities(q, name)
    at = np.searchsorted(quantizer.ladder.bits, bits)
    return cell, number(float(probs[np.arange(len(bits)), at].mean()), ".3f")


def _figures(q: Program) -> Iterator[Figure]:
    yield figure(plot.cost(q), "How much networks drawn from the posterior cost, the limit, and what was decided.")
    yield figure(plot.depth(q), "Probability of each width of the weights, from the first layer to the last.")
    if any(layer.input in q for layer in q.layers):
        yield figure(plot.depth(q, "input"), "Probability of each width of the layers' inputs.")
    yield figure(plot.forest(q), "How sure the widths are: short lines are settled, long ones could go either way.")
    if any(q.weights[name].gates for name in q.weight_names):
        yield figure(plot.channels(q), "Channels of one layer that need more bits than others are darker.")
    for name in _costly(q)[:DRAWN]:
        yield figure(plot.weights(q, name), "Weights before rounding, and how often each level is used.")


def measured(q: Program) -> list[Figure]:
    """Return the energy by which widths were chosen, if there is one, with those decided."""
    if q.energy is None:
        return []
    decided = width_draws.decided_widths(q, q.budget)
    single = all(len(np.unique(decided[name])) == 1 for name in q.energy.names)
    if q.energy.unit == OF_CHOICES:
        does, text = "take", "What each width of each tensor takes off the log-probability of being the best choice, "
        text += f"whatever it costs, by {q.energy.label}, in nats; below 0 it adds."
    else:
        does, text = "add", f"What each width of each tensor adds, in {q.energy.unit}, all else at its widest, by the "
        text += f"criterion {q.energy.label}."
    if single:
        text += f" All decided widths together {does} {q.energy(decided):.3g} {q.energy.unit}."
    if q.energy.pairwise is not None:
        text += " Beside it, for each pair of tensors, what the sum of both misses most."
    return [figure(plot.energy(q.energy, decided if single else None), text)]


def _costly(q: Program) -> list[str]:
    """Return the weights whose values are known, those of the most expensive layers first."""
    known, expected = dict(q.net.named_parameters(remove_duplicate=False)), width_draws.expected_costs(q)
    layers = sorted(q.layers, key=lambda layer: -expected[layer.name])
    return list(dict.fromkeys(m.weight for m in layers if m.weight in q.weight_names and m.weight in known))
