"""Decisions on random discrete problems: everything that can be enumerated is."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import log_softmax

from probq import ProbqError
from probq import cost as costs
from probq.codebooks import Ladder, ladder
from probq.decisions.allocation.conditional_sampling import conditional_draws, probability_within
from probq.decisions.allocation.most_probable import most_probable
from probq.decisions.allocation.problem import Choice, Problem, make_problem
from probq.network.tracing.layer import Layer


def curved(layer: Layer, weight_bits: float, input_bits: float) -> float:
    return float(layer.macs * (weight_bits * input_bits) ** 1.3 + weight_bits)


def layer(name: str, macs: int, weight: str | None = None, inputs: bool = True) -> Layer:
    return Layer(name, weight or f"{name}.weight", f"{name}.input" if inputs else None, macs, macs // 2, 3, 4, (2, 2))


@dataclass
class Case:
    """A random problem, and what it was made from."""

    problem: Problem
    layers: list[Layer]
    ladders: dict[str, Ladder]
    log_probs: dict[str, np.ndarray]
    costs: tuple[costs.Cost, ...]
    sites: dict[str, str]

    def states(self) -> list[tuple[float, np.ndarray, tuple]]:
        """Every choice of rungs: log-probability, costs, and a key; from the definition, groups not known."""
        names = list(self.log_probs)
        laws = [np.atleast_2d(self.log_probs[name]) for name in names]
        options = [list(itertools.product(range(law.shape[1]), repeat=len(law))) for law in laws]
        assert math.prod(map(len, options)) <= 20_000
        result = []
        for state in itertools.product(*options):
            log_prob = sum(law[g, k] for law, rungs in zip(laws, state, strict=True) for g, k in enumerate(rungs))
            bits = {name: [self.ladders[name].bits[k] for k in rungs] for name, rungs in zip(names, state, strict=True)}
            bits |= {name: bits[site] for name, site in self.sites.items()}
            result.append((float(log_prob), self.costs_of(bits), key(bits)))
        return result

    def costs_of(self, bits: Mapping[str, list[int]]) -> np.ndarray:
        total = np.zeros(len(self.costs))
        for k, cost in enumerate(self.costs):
            for member in self.layers:
                widths = bits.get(member.weight, [32])
                (x,) = bits.get(member.input or "", [32])
                total[k] += sum(cost(member, w, x) for w in widths) / len(widths)
        return total

    def key(self, choice: Choice) -> tuple:
        return key({name: np.atleast_1d(bits) for name, bits in self.problem.widths(choice).items()})


def key(bits: Mapping[str, Any]) -> tuple:
    return tuple((name, tuple(int(b) for b in bits[name])) for name in sorted(bits))


def random_case(
    seed: int,
    tied: bool = False,
    cost: costs.Cost | tuple[costs.Cost, ...] = costs.bops,
    gates: int = 1,
    ties: int = 0,
) -> Case:
    """Up to three layers with random ladders, probabilities and sizes; with `tied` the last uses the first's weight.

    With `ties`, that many pairs of quantizers share one width: of weights, inputs, or one of each, in one layer or two.
    """
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 4)) if gates == 1 else 2
    members = [layer(f"l{k}", int(rng.integers(1, 60)), inputs=bool(rng.integers(4))) for k in range(count)]
    if tied:
        members[-1] = layer("last", int(rng.integers(1, 60)), members[0].weight)
    ladders: dict[str, Ladder] = {}
    log_probs = {}
    for member in members:
        for name in (member.weight, member.input):
            if name is None or name in ladders:
                continue
            most = 4 if gates == 1 else 3
            rungs = sorted(rng.choice([0, 1, 2, 3, 4, 6, 8], int(rng.integers(1, most)), replace=False).tolist())
            ladders[name] = ladder(*rungs)
            rows = gates if name == member.weight else 1
            log_probs[name] = log_softmax(rng.normal(0, 2, (rows, len(rungs))), axis=1)
            if rows == 1:
                log_probs[name] = log_probs[name][0]
    sites: dict[str, str] = {}
    for _ in range(ties):
        free = [name for name in ladders if name not in sites and name not in sites.values()]
        one, other = sorted(rng.choice(free, 2, replace=False)) if len(free) > 1 else ("", "")
        if one and log_probs[one].ndim == log_probs[other].ndim:
            sites[other], ladders[other] = one, ladders[one]
            del log_probs[other]
    several = (cost,) if callable(cost) else cost
    p = make_problem(members, ladders, log_probs, cost, sites)
    return Case(p, members, ladders, log_probs, several, sites)


def within(cost: np.ndarray, limit: Any) -> bool:
    return bool((cost <= np.asarray(limit) * (1 + 1e-12)).all())


@settings(max_examples=120)
@given(
    st.integers(0, 10**6), st.booleans(), st.sampled_from([costs.bops, curved, costs.storage]), st.floats(0, 1),
    st.integers(0, 2),
)  # fmt: skip
def test_most_probable_is_the_brute_force_maximum(
    seed: int, tied: bool, cost: costs.Cost, where: float, ties: int
) -> None:
    case = random_case(seed, tied, cost, ties=ties)
    every = case.states()
    reachable = sorted(c[0] for _, c, _ in every)
    limit = reachable[int(where * (len(reachable) - 1))] * (1 + 1e-12)  # the cost of a choice
    choice, gap = most_probable(case.problem, limit)
    best = max(log_prob for log_prob, c, _ in every if within(c, limit))
    log_prob, c = case.problem.value(choice)
    assert gap == 0
    assert c[0] <= limit
    assert log_prob == pytest.approx(best, abs=1e-9)
    assert (log_prob, c[0]) == next(
        (pytest.approx(lp), pytest.approx(x[0])) for lp, x, k in every if k == case.key(choice)
    )


SEVERAL = (costs.bops, costs.storage, costs.activations)


@settings(max_examples=80)
@given(st.integers(0, 10**6), st.booleans(), st.integers(0, 2), st.floats(0, 1), st.sampled_from([1, 3]))
def test_several_limits_by_brute_force(seed: int, tied: bool, ties: int, where: float, gates: int) -> None:
    """Limits around the costs of a choice: it, or something more probable, is found, or what is in the way is said."""
    case = random_case(seed, tied and gates == 1, SEVERAL, gates, ties)
    every = case.states()
    limits = every[int(where * (len(every) - 1))][1].copy()
    rng = np.random.default_rng(seed)
    limits = np.maximum(limits * rng.choice([0.7, 0.95, 1.0, 1.2], 3), 1e-3) * (1 + 1e-9)
    inside = [state for state in every if within(state[1], limits)]
    if not inside:
        with pytest.raises(ProbqError, match=r"cannot be reached|not together") as caught:
            most_probable(case.problem, limits)
        alone = [k for k in range(3) if min(c[k] for _, c, _ in every) > limits[k] * (1 + 1e-9)]
        assert ("cannot be reached" in str(caught.value)) == bool(alone)
        if not alone:
            excess = min((c / limits).max() for _, c, _ in every)
            assert f"{100 * (excess - 1):.3g} %" in str(caught.value)
        return
    choice, gap = most_probable(case.problem, limits)
    best = max(log_prob for log_prob, _, _ in inside)
    log_prob, c = case.problem.value(choice)
    assert within(c, limits)
    assert case.key(choice) in {k for _, _, k in inside}
    assert log_prob <= best + 1e-9
    assert log_prob + gap >= best - 1e-6
    if gates == 1:
        assert (gap, log_prob) == (0, pytest.approx(best, abs=1e-9))


def test_limits_that_contradict_each_other_name_the_nearest_widths() -> None:
    """One width for the weights, one for the inputs: few bits of one ask for many of the other."""

    def narrow(layer: Layer, w: float, a: float) -> float:
        return w

    def wide(layer: Layer, w: float, a: float) -> float:
        return 10 - w

    ladders = {"l.weight": ladder(2, 4, 8), "l.input": ladder(2)}
    log_probs = {"l.weight": np.log(np.full(3, 1 / 3)), "l.input": np.zeros(1)}
    p = make_problem([layer("l", 5)], ladders, log_probs, (narrow, wide))
    assert p.widths(most_probable(p, np.array([4, 6]))[0])["l.weight"] == 4
    sentence = "budgets of 3 narrow and 5 wide can each be kept, but not together.* nearest cost 4 narrow and 6 wide"
    with pytest.raises(ProbqError, match=sentence + ".*33.4 %"):
        most_probable(p, np.array([3, 5]))
    with pytest.raises(ProbqError, match=r"budget of 1 narrow .* cannot be reached"):
        most_probable(p, np.array([1, 5]))


def test_values_of_choices_by_hand() -> None:
    members = [layer("a", 10), layer("b", 20, "a.weight"), layer("c", 5)]
    ladders = {"a.weight": ladder(1, 2), "a.input": ladder(4), "b.input": ladder(2, 8)}
    halves = {name: np.log(np.full(len(book), 1 / len(book))) for name, book in ladders.items()}
    p = make_problem(members, ladders, halves, costs.bops)
    assert p.constant == 5 * 32 * 32  # c has no quantizer
    assert p.full == 35 * 32 * 32
    assert p.cheapest == 5 * 1024 + 10 * 1 * 4 + 20 * 1 * 2
    (group,) = p.groups
    assert (group.shared, group.leaves) == (("a.weight",), ("a.input", "b.input"))  # given one weight, inputs are free
    assert group.combinations.tolist() == [[0], [1]]
    assert group.cost.tolist() == [[[[10 * 4, 0], [20 * 2, 20 * 8]], [[2 * 10 * 4, 0], [2 * 20 * 2, 2 * 20 * 8]]]]
    assert p.value([(1, np.array([0, 1]))]) == (pytest.approx(math.log(0.25)), 5 * 1024 + 400)
    assert p.widths([(1, np.array([0, 1]))]) == {"a.weight": 2, "a.input": 4, "b.input": 8}


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.floats(0.0, 1.0), st.sampled_from([costs.bops, curved]))
def test_many_gates_are_feasible_and_the_gap_is_a_bound(seed: int, where: float, cost: costs.Cost) -> None:
    case = random_case(seed, cost=cost, gates=4)
    every = case.states()
    reachable = sorted(c[0] for _, c, _ in every)
    limit = reachable[int(where * (len(reachable) - 1))] * (1 + 1e-9)
    choice, gap = most_probable(case.problem, limit)
    best = max(log_prob for log_prob, c, _ in every if c <= limit)
    log_prob, c = case.problem.value(choice)
    assert c <= limit
    assert gap >= 0
    assert log_prob <= best + 1e-9
    assert log_prob + gap >= best - 1e-6


def test_many_gates_come_close_to_the_best() -> None:
    """Over many problems the Lagrangian's choice is mostly within the odds of one gate of the best one."""
    shortfalls = []
    for seed in range(40):
        case = random_case(seed, gates=5)
        every = case.states()
        limit = float(np.median([c for _, c, _ in every])) * (1 + 1e-9)
        choice, _ = most_probable(case.problem, limit)
        shortfalls.append(max(lp for lp, c, _ in every if c <= limit) - case.problem.value(choice)[0])
    assert np.median(shortfalls) < 0.1
    assert max(shortfalls) < 5


@pytest.mark.parametrize("gates", [1, 3, 7])
def test_the_cheapest_choice_is_reachable_at_exactly_its_cost(gates: int) -> None:
    for seed in range(10):
        p = random_case(seed, gates=gates, cost=curved).problem
        choice, _ = most_probable(p, p.cheapest)
        assert p.value(choice)[1] <= p.cheapest * (1 + 1e-12)
        (draw,) = conditional_draws(p, p.cheapest, 1, np.random.default_rng(0))
        assert p.value(draw)[1] <= p.cheapest * (1 + 1e-12)


@pytest.mark.parametrize("gates", [1, 3])
def test_a_limit_below_reach_names_the_cheapest_cost(gates: int) -> None:
    p = random_case(5, gates=gates).problem
    limit = float(p.cheapest[0]) * 0.99
    for solve in (lambda: most_probable(p, limit), lambda: conditional_draws(p, limit, 1, np.random.default_rng(0))):
        with pytest.raises(ProbqError, match=f"cost {p.cheapest[0]:,.0f}"):
            solve()


def conditional_law(case: Case, limit: Any) -> Mapping[tuple, float]:
    inside = {k: math.exp(log_prob) for log_prob, c, k in case.states() if (c <= limit).all()}
    return {k: weight / sum(inside.values()) for k, weight in inside.items()}


@pytest.mark.parametrize("gates", [1, 3])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_draws_follow_the_conditional_law(seed: int, share: float, gates: int) -> None:
    case = random_case(seed, tied=seed % 2 == 1 and gates == 1, gates=gates, ties=seed % 3)
    reachable = sorted(c[0] for _, c, _ in case.states())
    limit = reachable[min(len(reachable) - 1, max(2, int(share * (len(reachable) - 1))))] * (1 + 1e-9)
    law = conditional_law(case, limit)
    draws = [case.key(choice) for choice in conditional_draws(case.problem, limit, 2000, np.random.default_rng(seed))]
    fits(draws, law)


@pytest.mark.parametrize("gates", [1, 3])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_draws_under_several_limits_follow_the_conditional_law(seed: int, share: float, gates: int) -> None:
    case = random_case(seed, cost=SEVERAL, gates=gates, ties=seed % 2)
    limits = np.quantile([c for _, c, _ in case.states()], share, axis=0) * (1 + 1e-9)
    law = conditional_law(case, limits)
    if law:
        chosen = conditional_draws(case.problem, limits, 2000, np.random.default_rng(seed))
        assert all(within(case.problem.value(choice)[1], limits) for choice in chosen)
        fits([case.key(choice) for choice in chosen], law)


def fits(draws: list[tuple], law: Mapping[tuple, float]) -> None:
    """Goodness of fit of 2000 draws."""
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
    case = random_case(1)
    p = case.problem
    limit = float(np.median([c for _, c, _ in case.states()]))
    costs_of = np.array([p.value(c)[1][0] for c in conditional_draws(p, limit, 1500, np.random.default_rng(3))])
    assert costs_of.std() > 0
    assert stats.pearsonr(costs_of[1:], costs_of[:-1]).pvalue > 0.001
    assert stats.mannwhitneyu(costs_of[:750], costs_of[750:]).pvalue > 0.001


@pytest.mark.parametrize("cost", [costs.bops, curved])
@pytest.mark.parametrize("gates", [1, 3])
def test_probability_within_by_enumeration(cost: costs.Cost, gates: int) -> None:
    for seed in range(5):
        case = random_case(seed, cost=cost, gates=gates, ties=seed % 3)
        every = case.states()
        for quantile in (0.1, 0.5, 0.9):
            limit = float(np.quantile([c for _, c, _ in every], quantile)) * (1 + 1e-9)
            exact = sum(math.exp(log_prob) for log_prob, c, _ in every if c <= limit)
            tolerance = 1e-9 if gates == 1 else 5 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-9
            assert probability_within(case.problem, limit) == pytest.approx(exact, abs=tolerance)


@pytest.mark.parametrize("gates", [1, 3])
def test_probability_of_several_limits_by_enumeration(gates: int) -> None:
    for seed in range(6):
        case = random_case(seed, cost=SEVERAL, gates=gates, ties=seed % 3)
        every = case.states()
        for quantile in (0.2, 0.5, 0.8):
            limits = np.quantile([c for _, c, _ in every], quantile, axis=0) * (1 + 1e-9)
            exact = sum(math.exp(log_prob) for log_prob, c, _ in every if (c <= limits).all())
            tolerance = 1e-9 if gates == 1 else 5 * math.sqrt(max(0.0, exact * (1 - exact)) / 20_000) + 1e-9
            assert probability_within(case.problem, limits) == pytest.approx(exact, abs=tolerance)


def test_probability_within_is_one_above_and_zero_below() -> None:
    case = random_case(2)
    p, every = case.problem, [float(c[0]) for _, c, _ in case.states()]
    assert probability_within(p, max(every)) == pytest.approx(1)
    assert probability_within(p, min(every) * 0.999) == 0


def test_many_shared_inputs() -> None:
    """Given one width of the weight the inputs are independent; many gates that meet many inputs are refused."""
    members = [layer(f"l{k}", 3, "l0.weight") for k in range(7)]
    ladders = {f"l{k}.input": ladder(1, 2, 3, 4) for k in range(7)} | {"l0.weight": ladder(2, 4)}
    log_probs = {name: np.log(np.full(len(book), 1 / len(book))) for name, book in ladders.items()}
    (group,) = make_problem(members, ladders, log_probs, costs.bops).groups
    assert (group.shared, len(group.leaves)) == (("l0.weight",), 7)
    log_probs["l0.weight"] = np.log(np.full((3, 2), 0.5))
    with pytest.raises(ProbqError, match="shared by too many"):
        make_problem(members, ladders, log_probs, costs.bops)
