"""What every cost must keep: totals by definition, exact expectations and gradients, enumerated decisions, files.

A new cost is one line of `COSTS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
import pytest
import torch
from cost_networks import NETWORKS, chain, choices
from torch import nn

import probq
from probq import Budget, Layer, Quantized
from probq import cost as costs
from probq.decisions.within_budget import probability_within

Widths = dict[str, int]


class Case(NamedTuple):
    """A cost.

    Attributes:
        make: the cost, for a network.
        of_layer: what a layer costs at the widths of all, from the definition.
        whole: how layers add up.
        kept: whether a file holds it.
    """

    make: Callable[[Quantized], costs.Cost]
    of_layer: Callable[[Layer, Widths], float]
    whole: Callable[[list[float]], float] = sum
    kept: bool = True


def weight(layer: Layer, bits: Widths) -> int:
    return bits[layer.weight]


def given(layer: Layer, bits: Widths) -> int:
    return bits[layer.input or ""]


def measured(name: str, weight_bits: int, input_bits: int) -> float:
    """A measurement of one layer, in no order of the widths."""
    return 1 + (7.3 * weight_bits + 3.1 * input_bits + 5.7 * int(name)) % 8


def latency(q: Quantized) -> costs.Cost:
    """The table of all measurements."""
    rows = [
        (layer.name, w, a, measured(layer.name, w, a))
        for layer in q.layers
        for w in q.quantizer(layer.weight).ladder.bits
        for a in q.quantizer(layer.input or "").ladder.bits
    ]
    return costs.table(pandas.DataFrame(rows, columns=["layer", "weight_bits", "input_bits", "cost"]), "latency")


def own(layer: Layer, weight_bits: Any, input_bits: Any) -> Any:
    """A cost of the user's own."""
    return layer.macs * np.sqrt(weight_bits) + 2.0 ** np.asarray(input_bits)


COSTS = {
    "bops": Case(lambda q: costs.bops, lambda m, b: m.macs * weight(m, b) * given(m, b)),
    "storage": Case(lambda q: costs.storage, lambda m, b: m.weights * weight(m, b)),
    "activations": Case(lambda q: costs.activations, lambda m, b: m.inputs * given(m, b)),
    "largest": Case(lambda q: costs.largest_activation, lambda m, b: m.inputs * given(m, b), max),
    "ebops": Case(lambda q: costs.ebops, lambda m, b: m.macs * {0: 0, 1: 1, 2: 1, 4: 3}[weight(m, b)] * given(m, b)),
    # here whole tensors share a width, so that no channel is pruned by itself
    "pruned": Case(lambda q: costs.pruned_bops, lambda m, b: m.macs * weight(m, b) * given(m, b)),
    "table": Case(latency, lambda m, b: measured(m.name, weight(m, b), given(m, b))),
    "share": Case(lambda q: costs.Share(2), lambda m, b: m.weights * (weight(m, b) == 2)),
    "own": Case(lambda q: own, lambda m, b: m.macs * math.sqrt(weight(m, b)) + 2 ** given(m, b), kept=False),
}
every_cost = pytest.mark.parametrize("case", COSTS.values(), ids=COSTS)
every_network = pytest.mark.parametrize("network", NETWORKS)


def by_hand(q: Quantized, bits: Widths, case: Case) -> float:
    """Cost of one choice of widths."""
    return float(case.whole([case.of_layer(layer, bits) for layer in q.layers]))


# Totals, expectations and gradients


@every_network
@every_cost
def test_expectations_and_totals_are_the_enumerated_ones(network: str, case: Case) -> None:
    q = NETWORKS[network]()
    every, cost = list(choices(q)), case.make(q)
    assert sum(p for p, _ in every) == pytest.approx(1)
    assert all(costs.total(q.layers, bits, cost) == pytest.approx(by_hand(q, bits, case)) for _, bits in every)
    expected = sum(p * by_hand(q, bits, case) for p, bits in every)
    assert float(q.expected_cost(q.cost_tables(cost)).detach()) == pytest.approx(expected, rel=1e-6)


@every_network
@every_cost
def test_gradients_of_expectations_by_finite_differences(network: str, case: Case) -> None:
    q = NETWORKS[network]()
    tables = q.cost_tables(case.make(q))
    expected = q.expected_cost(tables)
    for _, quantizer in q.named_sites():
        if len(quantizer.ladder) > 1:
            (slope,) = torch.autograd.grad(
                expected, quantizer.logits, retain_graph=True, materialize_grads=True, allow_unused=True
            )
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    quantizer.logits[0] += sign * 1e-2
                    values.append(float(q.expected_cost(tables)))
                    quantizer.logits[0] -= sign * 1e-2
            assert float(slope[0]) == pytest.approx((values[0] - values[1]) / 2e-2, rel=1e-2, abs=1e-3)


@every_cost
def test_widths_of_channels_cost_what_each_costs_by_itself(case: Case) -> None:
    q = chain()
    cost, layer = case.make(q), q.layers[0]
    w, a = np.array([[0], [1], [4]]), np.array([2, 4])
    found = np.broadcast_to(cost(layer, w, a), (3, 2))
    assert found.tolist() == [[float(cost(layer, int(x), int(y))) for y in a] for x in w[:, 0]]
    assert np.isfinite(found).all()
    assert (found >= 0).all()


@every_cost
def test_percentages_refer_to_32_bits(case: Case) -> None:
    q = chain()
    cost = case.make(q)
    full = costs.full(q.layers, cost)
    assert Budget(percent=100, cost=cost).absolute(q.layers) == pytest.approx(full, rel=1e-12)
    a = q.mode()
    assert a.percent(cost) == pytest.approx(100 * by_hand(q, dict(a.widths), case) / full)


# Decisions


@every_network
@pytest.mark.parametrize("names", [(name,) for name in COSTS] + [("bops", "storage"), ("table", "largest", "ebops")])
def test_decisions_under_limits_are_the_enumerated_ones(network: str, names: tuple[str, ...]) -> None:
    q, cases = NETWORKS[network](), [COSTS[name] for name in names]
    every = [(p, np.array([by_hand(q, bits, case) for case in cases]), bits) for p, bits in choices(q)]
    rng = np.random.default_rng(1)
    for row in rng.choice(len(every), 2, replace=False):
        limits = np.maximum(every[row][1], 1e-3) * (1 + 1e-9)
        budget = [Budget(limit=float(x), cost=case.make(q)) for x, case in zip(limits, cases, strict=True)]
        inside = [(p, bits) for p, c, bits in every if (c <= limits).all()]
        a, best = q.mode(budget), max(p for p, _ in inside)
        assert a.widths in [bits for _, bits in inside]
        assert math.exp(a.log_prob) == pytest.approx(best, rel=1e-5)
        assert a.gap == pytest.approx(0, abs=1e-5)
        assert a.limit == (tuple(limits) if len(limits) > 1 else limits[0])
        within = sum(p for p, _ in inside)
        assert probability_within(q, budget) == pytest.approx(within, abs=1e-6)
        assert all(draw.widths in [bits for _, bits in inside] for draw in q.sample(4, budget, seed=0))


# Training and files


@pytest.mark.filterwarnings("ignore:at 0 bits of")
@every_cost
def test_a_fit_keeps_a_limit_on_it(case: Case, tmp_path: Path) -> None:
    q = chain(seed=1)
    cost = case.make(q)
    dear = [by_hand(q, bits, case) for _, bits in choices(q)]
    limit = np.quantile(dear, 0.3) or min(filter(None, dear))  # a cost may be 0 at many choices, a limit may not
    budget = Budget(limit=float(limit) * (1 + 1e-9), cost=cost)
    generator = torch.Generator().manual_seed(0)
    data = [(torch.rand(8, 5, generator=generator), torch.arange(8) % 3)] * 3
    history = probq.fit(q, data, budget, epochs=2, progress=False, seed=0)
    assert by_hand(q, dict(q.mode().widths), case) <= budget.absolute(q.layers)
    assert history.steps[-1].percent == pytest.approx(q.mode().percent(cost))
    q.save(tmp_path / "q")
    net = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 3))
    if case.kept:
        assert probq.load(tmp_path / "q", net).budget == budget
    else:
        with pytest.warns(UserWarning, match="a file cannot hold its cost"):
            assert probq.load(tmp_path / "q", net).budget is None
