"""Measured losses update the laws of widths: the regression, the law of the best choice, and what a fit leaves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import gumbel_r, multivariate_normal
from sklearn.linear_model import Ridge
from torch import nn

import probq
from probq import Budget, Plan
from probq import cost as costs
from probq.codebooks import ladder
from probq.network.distributions.widths import Widths
from probq.training.refinement.decide import make_search
from probq.training.refinement.evidence.evidence import (
    GUMBEL,
    chain_logits,
    measured_effects,
    scores,
    take_evidence,
    with_trials,
)
from probq.training.refinement.evidence.space import WidthSpace
from probq.training.refinement.prediction.choice_process import RATIOS

SIZES = (3, 2, 4)
STATES = np.array(list(itertools.product(*map(range, SIZES))))


def space(seed: int | None = None) -> WidthSpace:
    """Three quantizers, with flat or random laws."""
    generator = np.random.default_rng(seed)
    laws = [np.zeros(size) if seed is None else np.log(generator.dirichlet(np.ones(size))) for size in SIZES]
    options = tuple(tuple(range(1, size + 1)) for size in SIZES)
    return WidthSpace(("a", "b", "c"), options, tuple(laws), ())


def quantized(gates: str = "tensor") -> probq.Quantized:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    return probq.quantize(
        net, torch.rand(8, 4), Plan(weight=ladder(1, 2, 4), input=ladder(2, 8, signed=False), gates=gates)
    )


def places(q: probq.Quantized) -> WidthSpace:
    sites = [(name, quantizer) for name, quantizer in q.named_sites()]
    logs = tuple(quantizer.widths().log_probs.detach().double().numpy() for _, quantizer in sites)
    return WidthSpace(tuple(name for name, _ in sites), tuple(z.ladder.bits for _, z in sites), logs, ())


def states_of(own: WidthSpace) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(options)) for options in own.options)))


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_effects_are_those_of_a_ridge_regression_on_one_hot_rungs(seed: int | None) -> None:
    own, generator = space(seed), np.random.default_rng(7)
    chosen = STATES[generator.permutation(len(STATES))[:15]]
    values = generator.normal(size=15) + chosen @ [1.0, 2.0, 0.5]
    found = measured_effects(own, chosen, values)
    ones = np.concatenate([np.eye(size)[chosen[:, k]] for k, size in enumerate(SIZES)], 1)
    before = own.each_log_prob(chosen) - own.each_log_prob(chosen).mean()
    slope = max(0.0, -(before @ values) / (before @ before)) if seed is not None else 0.0
    rest = values - values.mean() + slope * before

    def density(ratio: float) -> float:
        covariance = ones @ ones.T / 3 + ratio * np.eye(15)
        scale = rest @ np.linalg.inv(covariance) @ rest / 15
        return float(multivariate_normal(np.zeros(15), scale * covariance).logpdf(rest))

    ratio = max(RATIOS, key=density)
    ridge = np.linalg.solve(ones.T @ ones + 3 * ratio * np.eye(sum(SIZES)), ones.T @ rest)
    expected = ridge - slope * np.concatenate(own.log_probs)
    np.testing.assert_allclose(np.concatenate(found.rows), expected, atol=1e-8)
    missed = []
    for k in range(15):
        others = np.delete(np.arange(15), k)
        fitted = Ridge(alpha=3 * ratio, fit_intercept=False).fit(ones[others], rest[others])
        missed.append(rest[k] - fitted.predict(ones[[k]])[0])
    assert found.error == pytest.approx(math.sqrt(np.mean(np.square(missed))))


def test_a_process_through_every_value_is_not_sure_of_others() -> None:
    own, generator = space(), np.random.default_rng(3)
    few = STATES[generator.permutation(len(STATES))[:5]]
    errors = []
    for seed in range(20):
        values = np.random.default_rng(seed).normal(size=5)  # no effects at all
        errors.append(measured_effects(own, few, values).error)
    assert np.mean(np.square(errors)) > 0.8


def test_a_sum_of_effects_is_found_and_its_error_told() -> None:
    own, generator = space(), np.random.default_rng(0)
    truth = [generator.normal(size=size) for size in SIZES]
    exact = np.array([sum(row[k] for row, k in zip(truth, state, strict=True)) for state in STATES])
    noisy = exact + 0.3 * generator.normal(size=len(exact))
    found = measured_effects(own, STATES, noisy)
    for row, wanted in zip(found.rows, truth, strict=True):
        np.testing.assert_allclose(row - row.mean(), wanted - wanted.mean(), atol=0.25)
    assert 0.15 < found.error < 0.45
    assert measured_effects(own, STATES, exact).error < 0.02


def test_the_law_is_that_of_the_best_choice_under_gumbel_errors() -> None:
    q = quantized()
    own, generator = places(q), np.random.default_rng(0)
    states = states_of(own)
    losses = {s: 1 + float(np.dot(s, [0.3, 0.2, 0.0, 0.1])) + 0.15 * generator.random() for s in states}
    effects = measured_effects(own, np.array(states), scores(np.array(list(losses.values()))))
    take_evidence(q, own, losses, None)
    laws = np.exp([q.log_prob(own.widths(s)) for s in states])
    assert laws.sum() == pytest.approx(1, abs=1e-5)
    means = np.array([sum(row[k] for row, k in zip(effects.rows, s, strict=True)) for s in states])
    errors = gumbel_r(scale=GUMBEL * effects.error).rvs((200_000, len(states)), random_state=1)
    assert errors.std() == pytest.approx(effects.error, rel=0.01)
    wins = np.bincount((errors - means).argmax(1), minlength=len(states)) / 200_000
    np.testing.assert_allclose(laws, wins, atol=5 * math.sqrt(0.25 / 200_000))


def test_gates_take_any_law_of_rungs() -> None:
    laws = torch.distributions.Dirichlet(torch.ones(5)).sample((20,)).double()
    torch.testing.assert_close(Widths(chain_logits(laws.log())).probs, laws)
    torch.testing.assert_close(Widths(chain_logits(laws.log() + 3)).probs, laws)
    sure = Widths(chain_logits(torch.tensor([-math.inf, 0.0, -math.inf]))).probs
    torch.testing.assert_close(sure, torch.tensor([0.0, 1.0, 0.0]))


def test_networks_that_broke_set_no_scale() -> None:
    values = scores(np.array([0.1, 0.2, 0.3, math.inf, 1e9]))
    assert np.isfinite(values).all()
    assert values[:3] == pytest.approx(np.log1p([0, 0.1 / 0.2, 1]))
    assert scores(np.array([2.0, 2.0])).tolist() == [0, 0]


def test_trials_move_what_they_tried_alone() -> None:
    found = with_trials({(0,): 3.0, (1,): 1.0, (2,): 2.0}, {(1,): 0.6, (2,): math.inf})
    assert found == {(0,): 3.0, (1,): 1.0, (2,): 2.0}
    assert with_trials({(0,): 1.0}, {(0,): math.inf}) == {(0,): 1.0}


@pytest.mark.parametrize("case", ["few", "equal", "infinite", "channel"])
def test_what_tells_nothing_changes_nothing(case: str) -> None:
    q = quantized("channel" if case == "channel" else "tensor")
    before = {name: quantizer.logits.clone() for name, quantizer in q.named_sites()}
    own = make_search(q, None, lambda widths: 0.0, 1).space
    states = states_of(own)[: 3 if case == "few" else 8]
    value = {"equal": lambda k: 1.0, "infinite": lambda k: math.inf}.get(case, float)
    take_evidence(q, own, {state: value(k) for k, state in enumerate(states)}, None)
    assert all(torch.equal(quantizer.logits, before[name]) for name, quantizer in q.named_sites())


def test_after_most_fits_the_decision_is_among_the_most_probable() -> None:
    gaps = []
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(192, 4, generator=generator)
        y = (x @ torch.randn(4, 3, generator=generator)).argmax(1)
        pairs, held = list(zip(x[:128].split(32), y[:128].split(32), strict=True)), [(x[128:], y[128:])]
        q = quantized()
        probq.fit(q, pairs, Budget(percent=2), 6, validation=held, evaluations=40, seed=seed, progress=False)
        a = q.mode()
        gaps.append(a.gap)
        assert a.log_prob == pytest.approx(q.log_prob(a.widths))
        assert q.mode(measured=False).log_prob - a.log_prob == pytest.approx(a.gap, abs=1e-6)
        assert all(draw.cost() <= q.budget.absolute(q.layers) for draw in q.sample(32, seed=0))
    assert sum(gap <= 2 for gap in gaps) >= 4


@pytest.mark.parametrize("function", ["fit", "decide"])
@pytest.mark.parametrize("probability", [0.6, 0.95])
def test_a_promised_probability_is_kept_by_what_was_measured(function: str, probability: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(192, 4, generator=generator)
    y = (x @ torch.randn(4, 3, generator=generator)).argmax(1)
    pairs, held = list(zip(x[:128].split(32), y[:128].split(32), strict=True)), [(x[128:], y[128:])]
    q, budget = quantized(), Budget(percent=1.0, probability=probability)
    if function == "fit":
        probq.fit(q, pairs, budget, 6, validation=held, evaluations=40, seed=0, progress=False)
    else:
        probq.decide(q, budget, held, progress=False)
    own = places(q)
    inside = [s for s in states_of(own) if costs.total(q.layers, own.widths(s)) <= budget.absolute(q.layers)]
    q.energy = None  # the promise is of the gates; draws of networks always keep the limit
    assert sum(math.exp(q.log_prob(own.widths(s))) for s in inside) >= probability - 1e-6


def test_the_law_within_a_budget_is_that_of_the_best_choice_there() -> None:
    q, budget = quantized(), Budget(percent=1.0)
    own, generator = places(q), np.random.default_rng(1)
    states = states_of(own)
    losses = {s: 1 - float(np.dot(s, [0.1, 0.2, 0.05, 0.1])) + 0.1 * generator.random() for s in states}
    effects = measured_effects(own, np.array(states), scores(np.array(list(losses.values()))))
    take_evidence(q, own, losses, budget)
    field = probq.WidthField(q, q.energy, budget)
    inside = [s for s in states if costs.total(q.layers, own.widths(s)) <= budget.absolute(q.layers)]
    assert 3 < len(inside) < len(states)
    means = np.array([sum(row[k] for row, k in zip(effects.rows, s, strict=True)) for s in inside])
    errors = gumbel_r(scale=GUMBEL * effects.error).rvs((200_000, len(inside)), random_state=1)
    wins = np.bincount((errors - means).argmax(1), minlength=len(inside)) / 200_000
    laws = np.exp([field.log_prob(own.widths(s)) for s in inside])
    np.testing.assert_allclose(laws, wins, atol=5 * math.sqrt(0.25 / 200_000))


def test_a_new_search_forgets_what_was_measured_at_other_weights() -> None:
    q, data = quantized(), [(torch.rand(16, 4), torch.arange(16) % 3)]
    probq.fit(q, data, Budget(percent=2), 4, validation=data, evaluations=20, seed=0, progress=False)
    measured = q.energy
    assert measured is not None
    assert measured.label == "measured losses"
    probq.fit(q.at(q.mode()), data, epochs=1, seed=0, progress=False)
    assert q.energy is measured  # tuning asks nothing anew
    probq.fit(q, data, Budget(percent=2), 4, search=0.5, seed=0, progress=False)
    assert q.energy is None
