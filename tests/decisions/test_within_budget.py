"""Decisions of whole networks: what leaves with a budget keeps it, and expectations are exact."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import probq
from probq import Budget, Plan, ProbqError, Quantized
from probq import cost as costs
from probq.codebooks import ladder
from probq.decisions.within_budget import probability_within
from probq.network.tracing.layer import Layer
from probq.testing import rung_probabilities, width_states


def curved(layer: Layer, w: float, a: float) -> float:
    return float(layer.macs * (w * a) ** 1.3 + w)


def moved(q: Quantized, seed: int = 0) -> Quantized:
    """The network with gates away from their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, quantizer in q.named_quantizers():
            quantizer.logits.copy_(torch.randn(quantizer.logits.shape, generator=generator))
    return q


def small(gates: str = "tensor", seed: int = 0) -> Quantized:
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    plan = Plan(weight=ladder(0, 1, 2, 4), input=ladder(1, 2, 8, signed=False), network_input=ladder(4, 8), gates=gates)
    return moved(probq.quantize(net, torch.rand(5, 6), plan=plan), seed)


def digits(gates: str = "tensor") -> Quantized:
    """A network for 8x8 digits, untrained."""
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 2), nn.ReLU(), nn.Flatten(), nn.Linear(48, 10),
    )  # fmt: skip
    plan = Plan(weight=ladder(1, 2, 4, 8), gates=gates)
    return moved(probq.quantize(net, torch.rand(4, 1, 8, 8), plan=plan), 1)


def cost_of(q: Quantized, rungs: dict[str, int], cost: costs.Cost) -> float:
    bits = {name: q.quantizer(name).ladder.bits[k] for name, k in rungs.items()}
    return sum(float(cost(layer, bits[layer.weight], bits[layer.input or ""])) for layer in q.layers)


@pytest.mark.parametrize("cost", [costs.bops, costs.storage, curved])
def test_expected_cost_is_the_enumerated_one(cost: costs.Cost) -> None:
    q = small()
    expected = sum(p * cost_of(q, rungs, cost) for rungs, p in width_states(q))
    assert sum(p for _, p in width_states(q)) == pytest.approx(1)
    assert float(q.expected_cost(q.cost_tables(cost)).detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("gates", ["channel", "weight"])
@pytest.mark.parametrize("cost", [costs.bops, curved])
def test_expected_cost_of_many_gates_is_a_mean_over_them(gates: str, cost: costs.Cost) -> None:
    q = small(gates)
    expected = 0.0
    for layer in q.layers:
        weight, x = q.quantizer(layer.weight), q.quantizer(layer.input or "")
        open_ = torch.sigmoid(weight.logits.detach().double()).reshape(-1, 3).numpy()
        of_gates = [[math.prod(row[:k]) * (1 - row[k] if k < 3 else 1) for k in range(4)] for row in open_]
        for gate, (j, p) in itertools.product(of_gates, enumerate(rung_probabilities(x))):
            for k, share in enumerate(gate):
                expected += share * p * cost(layer, weight.ladder.bits[k], x.ladder.bits[j]) / len(of_gates)
    assert float(q.expected_cost(q.cost_tables(cost)).detach()) == pytest.approx(expected, rel=1e-5)


def test_gradient_of_the_expected_cost_by_finite_differences() -> None:
    q = small("channel")
    tables = q.cost_tables(costs.bops)
    q.expected_cost(tables).backward()
    for name, quantizer in q.named_quantizers():
        index = (0,) * quantizer.logits.dim()
        assert quantizer.logits.grad is not None
        slopes = []
        for sign in (1, -1):
            with torch.no_grad():
                quantizer.logits[index] += sign * 1e-2
                slopes.append(float(q.expected_cost(tables)))
                quantizer.logits[index] -= sign * 1e-2
        assert float(quantizer.logits.grad[index]) == pytest.approx((slopes[0] - slopes[1]) / 2e-2, rel=1e-2), name


@pytest.mark.parametrize("cost", [costs.bops, curved])
def test_the_mode_is_the_enumerated_one(cost: costs.Cost) -> None:
    for seed in range(4):
        q = small(seed=seed)
        every = [(p, cost_of(q, rungs, cost), rungs) for rungs, p in width_states(q)]
        assert len(every) <= 10_000
        for limit in sorted(c for _, c, _ in every if c > 0)[3::150]:
            best = max(p for p, c, _ in every if c <= limit * (1 + 1e-12))
            a = q.mode(Budget(limit=limit * (1 + 1e-12), cost=cost))
            assert a.cost(cost) <= limit * (1 + 1e-12)
            assert math.exp(a.log_prob) == pytest.approx(best, rel=1e-5)
            assert a.gap == 0
        free = max(every, key=lambda state: state[0])
        assert q.mode().widths == {n: q.quantizer(n).ladder.bits[k] for n, k in free[2].items()}


@pytest.mark.parametrize("gates", ["tensor", "channel", "weight"])
@pytest.mark.parametrize("percent", [0.6, 1.5, 4.0])
def test_nothing_that_leaves_with_a_budget_exceeds_it(gates: str, percent: float) -> None:
    q, budget = digits(gates), Budget(percent=percent)
    limit = budget.absolute(q.layers)
    draws = q.sample(200 if gates == "tensor" else 40, budget, seed=0)
    mode = q.mode(budget)
    assert max(a.cost() for a in (*draws, mode)) <= limit
    assert max(a.percent() for a in (*draws, mode)) <= percent
    assert mode.log_prob + mode.gap >= max(a.log_prob for a in draws) - 1e-9
    assert len({str(a.widths) for a in draws}) > 1


def test_draws_may_differ_in_codes_too() -> None:
    q = small()
    draws = q.sample(30, seed=4)
    alike = [(a, b) for a, b in itertools.combinations(draws, 2) if a.widths == b.widths]
    assert any(a != b for a, b in alike)
    assert draws == q.sample(30, seed=4)


def test_sampling_is_reproducible_and_leaves_the_global_generator_alone() -> None:
    q = small("channel")
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, second, other = (q.sample(3, seed=s) for s in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == second
    assert first != other


@pytest.mark.parametrize("cost", [costs.bops, curved])
def test_probability_within_is_the_enumerated_one(cost: costs.Cost) -> None:
    q = small(seed=3)
    every = [(p, cost_of(q, rungs, cost)) for rungs, p in width_states(q)]
    limit = float(np.median([c for _, c in every])) * (1 + 1e-9)
    exact = sum(p for p, c in every if c <= limit)
    assert probability_within(q, Budget(limit=limit, cost=cost)) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("gates", ["tensor", "channel", "weight"])
def test_a_budget_below_reach_names_the_reachable_figure(gates: str) -> None:
    q = digits(gates)
    cheapest = sum(layer.macs * 1 * (8 if layer.first else 1) for layer in q.layers)
    for decide in (lambda b: q.mode(b), lambda b: q.sample(1, b, seed=0)):
        with pytest.raises(ProbqError, match=f"cost {cheapest:,.0f}"):
            decide(Budget(limit=cheapest - 1))
        decide(Budget(limit=cheapest))


@pytest.mark.parametrize("gates", ["tensor", "channel", "weight"])
def test_cost_of_an_assignment_is_the_hand_sum(gates: str) -> None:
    q = digits(gates)
    for a in q.sample(3, seed=1):
        by_hand = 0.0
        for layer in q.layers:
            bits = (
                np.broadcast_to(np.asarray(a.widths[layer.weight], float), ())
                if gates == "tensor"
                else a.widths[layer.weight]
            )
            by_hand += layer.macs * float(np.mean(bits)) * a.widths[layer.input or ""]
        assert a.cost() == pytest.approx(by_hand, rel=1e-12)
        assert a.percent() == pytest.approx(100 * by_hand / (1024 * sum(m.macs for m in q.layers)))
        assert a.cost(costs.storage) == pytest.approx(
            sum(m.weights * float(np.mean(a.widths[m.weight])) for m in q.layers)
        )


@pytest.mark.parametrize(
    ("gates", "shapes"), [("channel", [(8,), (12,), (10,)]), ("weight", [(8, 1, 3, 3), (12, 8, 2, 2), (10, 48)])]
)
def test_shapes_of_widths_and_codes(gates: str, shapes: list[tuple[int, ...]]) -> None:
    q = digits(gates)
    for a in (q.mode(), *q.sample(2, Budget(percent=2), seed=0)):
        assert [np.shape(a.widths[name]) for name in q.weight_names] == shapes
        assert all(isinstance(a.widths[name], int) for name in q.input_names)
        for name in q.weight_names:
            assert a.codes[name].shape == q.weights[name].shape
            assert a.codes[name].dtype == np.int32
            bits = np.asarray(a.widths[name]).reshape(q.weights[name].gates)
            counts = np.select([bits == 1, bits == 2, bits == 4, bits == 8], [2, 3, 15, 255])
            assert (a.codes[name] >= 0).all()
            assert (a.codes[name] < np.broadcast_to(counts, a.codes[name].shape)).all()


def test_log_probability_of_an_assignment_by_hand() -> None:
    q = small(seed=2)
    for a in (q.mode(Budget(percent=1)), *q.sample(3, seed=0)):
        by_hand = sum(
            math.log(rung_probabilities(quantizer)[quantizer.ladder.bits.index(a.widths[name])])
            for name, quantizer in q.named_quantizers()
        )
        assert a.log_prob == pytest.approx(by_hand, rel=1e-5)


def test_budgets_refuse() -> None:
    for wrong in (
        {},
        {"percent": 1.0, "limit": 2.0},
        {"percent": 0},
        {"limit": -1},
        {"percent": math.nan},
        {"limit": True},
    ):
        with pytest.raises(ProbqError, match="budget"):
            Budget(**wrong)
    with pytest.raises(ProbqError, match="budget"):
        Budget(percent="1")  # type: ignore[arg-type]
    with pytest.raises(ProbqError, match=r"cost is one of probq.cost, such as .*not 'bops'"):
        Budget(limit=5, cost="bops")  # type: ignore[arg-type]


def test_budgets_take_the_numbers_of_numpy() -> None:
    assert repr(Budget(limit=np.int64(8000))) == "Budget(percent=None, limit=8000)"
    assert Budget(percent=np.float32(0.5), probability=np.float32(0.75)) == Budget(percent=0.5, probability=0.75)
    for wrong in (np.float32("nan"), np.int64(0), np.bool_(True)):
        with pytest.raises(ProbqError, match="positive number"):
            Budget(percent=wrong)


@pytest.mark.parametrize("n", [0, -1, True, 2.0])
def test_a_number_of_draws_is_a_positive_integer(n: object) -> None:
    with pytest.raises(ProbqError, match="number of draws"):
        small().sample(n)  # type: ignore[arg-type]


def test_fixed_widths_keep_or_refuse_a_budget() -> None:
    q = small()
    a = q.mode(Budget(percent=3))
    tuned = q.at(a)
    assert tuned.mode(Budget(percent=3)) == a
    assert tuned.sample(2, Budget(percent=3), seed=0)[1].widths == a.widths
    with pytest.raises(ProbqError, match="above the budget"):
        tuned.mode(Budget(limit=a.cost() - 1))


@pytest.mark.filterwarnings("ignore:the posterior was never fitted")
def test_a_network_at_widths_has_the_budget_that_they_were_decided_under() -> None:
    q, first, second = digits(), Budget(percent=0.5), [Budget(percent=2), Budget(percent=30, cost=costs.storage)]
    q.budget = first
    for decided in (q.mode(second), q.sample(1, second, seed=0)[0], replace(q.mode(second), loss=1.0)):
        assert decided.percent() > 0.5
        fixed = q.at(decided)
        assert fixed.budget == decided.budget == tuple(second)
        assert fixed.mode().widths == decided.widths
        assert fixed.mode().limit == decided.limit
        assert fixed.at(fixed.sample(1, seed=0)[0]).budget == tuple(second)
        assert fixed(torch.rand(2, 1, 8, 8)).shape == (2, 10)
        assert fixed.at(fixed.mode()).budget == tuple(second)
    assert q.budget == first
    assert q.at(q.mode()).budget == first
    by_hand = replace(q.mode(second), budget=None, limit=None)
    assert q.at(by_hand).budget is None  # which it does not keep
    assert q.at(by_hand).mode().widths == by_hand.widths
    assert q.at(replace(q.mode(), budget=None)).budget == first
