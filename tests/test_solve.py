"""Decisions on random discrete problems: everything that can be enumerated is."""

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import log_softmax

from probq import ProbqError
from probq import cost as costs
from probq.choices import Problem, problem
from probq.codebooks import ladder
from probq.layers import Layer
from probq.solve import conditional_draws, most_probable, probability_within


def curved(layer: Layer, weight_bits: float, input_bits: float) -> float:
    return float(layer.macs * (weight_bits * input_bits) ** 1.3 + weight_bits)


def layer(name: str, macs: int, weight: str | None = None, inputs: bool = True) -> Layer:
    return Layer(name, weight or f"{name}.weight", f"{name}.input" if inputs else None, macs, macs // 2, 3, 4, (2, 2))


def random_problem(seed: int, tied: bool = False, cost: costs.Cost = costs.bops, gates: int = 1) -> Problem:
    """Up to three layers with random ladders, probabilities and sizes; with `tied` the last uses the first's weight."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 4)) if gates == 1 else 2
    members = [layer(f"l{k}", int(rng.integers(1, 60)), inputs=bool(rng.integers(4))) for k in range(count)]
    if tied:
        members[-1] = layer("last", int(rng.integers(1, 60)), members[0].weight)
    ladders, log_probs = {}, {}
    for member in members:
        for name in (member.weight, member.input):
            if name is None or name in ladders:
                continue
            rungs = sorted(
                rng.choice([0, 1, 2, 3, 4, 6, 8], int(rng.integers(1, 4 if gates == 1 else 3)), replace=False).tolist()
            )
            ladders[name] = ladder(*rungs)
            rows = gates if name == member.weight else 1
            log_probs[name] = log_softmax(rng.normal(0, 2, (rows, len(rungs))), axis=1)
            if rows == 1:
                log_probs[name] = log_probs[name][0]
    return problem(members, ladders, log_probs, cost)


def states(p: Problem) -> list[tuple[float, float, tuple]]:
    """Every choice: log-probability, cost, and a key. Summed here, group by group, from the definition."""
    of_groups = []
    for group in p.groups:
        options = []
        for t in range(len(group.combinations)):
            for rungs in itertools.product(range(group.cost.shape[1]), repeat=group.gates):
                log_prob = group.log_inputs[t] + sum(group.log_gates[g, k] for g, k in enumerate(rungs))
                options.append((log_prob, sum(group.cost[t, k] for k in rungs) / group.gates, (t, rungs)))
        of_groups.append(options)
    assert math.prod(map(len, of_groups)) <= 10_000
    return [
        (sum(o[0] for o in state), p.constant + sum(o[1] for o in state), tuple(o[2] for o in state))
        for state in itertools.product(*of_groups)
    ]


def key(choice: list) -> tuple:
    return tuple((t, tuple(int(k) for k in rungs)) for t, rungs in choice)


@settings(max_examples=120)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([costs.bops, curved, costs.storage]), st.floats(0, 1))
def test_most_probable_is_the_brute_force_maximum(seed: int, tied: bool, cost: costs.Cost, where: float) -> None:
    p = random_problem(seed, tied, cost)
    every = states(p)
    reachable = sorted(c for _, c, _ in every)
    limit = reachable[int(where * (len(reachable) - 1))]  # exactly the cost of a choice
    choice, gap = most_probable(p, limit)
    best = max(log_prob for log_prob, c, _ in every if c <= limit)
    log_prob, c = p.value(choice)
    assert gap == 0
    assert c <= limit
    assert log_prob == pytest.approx(best, abs=1e-9)


def test_values_of_choices_by_hand() -> None:
    members = [layer("a", 10), layer("b", 20, "a.weight"), layer("c", 5)]
    ladders = {"a.weight": ladder(1, 2), "a.input": ladder(4), "b.input": ladder(2, 8)}
    halves = {name: np.log(np.full(len(book), 1 / len(book))) for name, book in ladders.items()}
    p = problem(members, ladders, halves, costs.bops)
    assert p.constant == 5 * 32 * 32  # c has no quantizer
    assert p.full == 35 * 32 * 32
    assert p.cheapest == 5 * 1024 + 10 * 1 * 4 + 20 * 1 * 2
    (group,) = p.groups
    assert group.inputs == ("a.input", "b.input")
    assert group.combinations.tolist() == [[0, 0], [0, 1]]
    assert group.cost.tolist() == [[10 * 4 + 20 * 2, 2 * (10 * 4 + 20 * 2)], [10 * 4 + 20 * 8, 2 * (10 * 4 + 20 * 8)]]
    assert p.value([(1, np.array([1]))]) == (pytest.approx(math.log(0.25)), 5 * 1024 + 400)
    assert p.widths([(1, np.array([1]))]) == {"a.weight": 2, "a.input": 4, "b.input": 8}


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.floats(0.0, 1.0), st.sampled_from([costs.bops, curved]))
def test_many_gates_are_feasible_and_the_gap_is_a_bound(seed: int, where: float, cost: costs.Cost) -> None:
    p = random_problem(seed, cost=cost, gates=4)
    every = states(p)
    reachable = sorted(c for _, c, _ in every)
    limit = reachable[int(where * (len(reachable) - 1))] * (1 + 1e-9)
    choice, gap = most_probable(p, limit)
    best = max(log_prob for log_prob, c, _ in every if c <= limit)
    log_prob, c = p.value(choice)
    assert c <= limit
    assert gap >= 0
    assert log_prob <= best + 1e-9
    assert log_prob + gap >= best - 1e-6


def test_many_gates_come_close_to_the_best() -> None:
    """Over many problems the Lagrangian's choice is mostly within the odds of one gate of the best one."""
    shortfalls = []
    for seed in range(40):
        p = random_problem(seed, gates=5)
        every = states(p)
        limit = float(np.median([c for _, c, _ in every])) * (1 + 1e-9)
        choice, _ = most_probable(p, limit)
        shortfalls.append(max(lp for lp, c, _ in every if c <= limit) - p.value(choice)[0])
    assert np.median(shortfalls) < 0.1
    assert max(shortfalls) < 5


@pytest.mark.parametrize("gates", [1, 3, 7])
def test_the_cheapest_choice_is_reachable_at_exactly_its_cost(gates: int) -> None:
    for seed in range(10):
        p = random_problem(seed, gates=gates, cost=curved)
        choice, _ = most_probable(p, p.cheapest)
        assert p.value(choice)[1] <= p.cheapest * (1 + 1e-12)
        (draw,) = conditional_draws(p, p.cheapest, 1, np.random.default_rng(0))
        assert p.value(draw)[1] <= p.cheapest * (1 + 1e-12)


@pytest.mark.parametrize("gates", [1, 3])
def test_a_limit_below_reach_names_the_cheapest_cost(gates: int) -> None:
    p = random_problem(5, gates=gates)
    limit = p.cheapest * 0.99
    for solve in (lambda: most_probable(p, limit), lambda: conditional_draws(p, limit, 1, np.random.default_rng(0))):
        with pytest.raises(ProbqError, match=f"cost {p.cheapest:,.0f}"):
            solve()


def conditional_law(p: Problem, limit: float) -> Mapping[tuple, float]:
    inside = {k: math.exp(log_prob) for log_prob, c, k in states(p) if c <= limit}
    return {k: weight / sum(inside.values()) for k, weight in inside.items()}


@pytest.mark.parametrize("gates", [1, 3])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_draws_follow_the_conditional_law(seed: int, share: float, gates: int) -> None:
    p = random_problem(seed, tied=seed % 2 == 1 and gates == 1, gates=gates)
    reachable = sorted(c for _, c, _ in states(p))
    limit = reachable[max(2, int(share * (len(reachable) - 1)))] * (1 + 1e-9)
    law = conditional_law(p, limit)
    draws = [key(choice) for choice in conditional_draws(p, limit, 2000, np.random.default_rng(seed))]
    assert set(draws) <= set(law)
    big = [k for k, weight in law.items() if weight * 2000 >= 5]
    counts = np.array([draws.count(k) for k in big], float)
    expected = np.array([law[k] * 2000 for k in big])
    rest, of_rest = 2000 - counts.sum(), 2000 - expected.sum()
    if of_rest >= 5:
        counts, expected = np.append(counts, rest), np.append(expected, of_rest)
    else:
        counts[0], expected[0] = counts[0] + rest, expected[0] + of_rest
    if len(counts) > 1:
        assert stats.chisquare(counts, expected).pvalue > 0.001


def test_draws_are_independent_of_their_order() -> None:
    """First and second half of the draws have the same frequencies, and consecutive ones no correlation."""
    p = random_problem(1)
    limit = float(np.median([c for _, c, _ in states(p)]))
    costs_of = np.array([p.value(c)[1] for c in conditional_draws(p, limit, 1500, np.random.default_rng(3))])
    assert costs_of.std() > 0
    assert stats.pearsonr(costs_of[1:], costs_of[:-1]).pvalue > 0.001
    assert stats.mannwhitneyu(costs_of[:750], costs_of[750:]).pvalue > 0.001


@pytest.mark.parametrize("cost", [costs.bops, curved])
@pytest.mark.parametrize("gates", [1, 3])
def test_probability_within_by_enumeration(cost: costs.Cost, gates: int) -> None:
    for seed in range(5):
        p = random_problem(seed, cost=cost, gates=gates)
        every = states(p)
        for quantile in (0.1, 0.5, 0.9):
            limit = float(np.quantile([c for _, c, _ in every], quantile)) * (1 + 1e-9)
            exact = sum(math.exp(log_prob) for log_prob, c, _ in every if c <= limit)
            tolerance = 1e-9 if gates == 1 else 5 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-9
            assert probability_within(p, limit) == pytest.approx(exact, abs=tolerance)


def test_probability_within_is_one_above_and_zero_below() -> None:
    p = random_problem(2)
    every = [c for _, c, _ in states(p)]
    assert probability_within(p, max(every)) == pytest.approx(1)
    assert probability_within(p, min(every) * 0.999) == 0


def test_too_many_shared_inputs_are_refused() -> None:
    members = [layer(f"l{k}", 3, "l0.weight") for k in range(7)]
    ladders = {f"l{k}.input": ladder(1, 2, 3, 4) for k in range(7)} | {"l0.weight": ladder(2)}
    log_probs = {name: np.zeros(len(book)) for name, book in ladders.items()}
    with pytest.raises(ProbqError, match="shared by too many"):
        problem(members, ladders, log_probs, costs.bops)
