"""The posterior is right: the oracle against hand algebra, fits against the oracle, calibration on simulated data."""

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import probq
from probq.codebooks import binary, ladder
from probq.likelihoods import Normal
from probq.testing import (
    Small,
    best_mean_field,
    best_mean_fields,
    calibration,
    distance,
    draw_from_prior,
    enumerable,
    enumerate_elbo,
    enumerate_joint,
    fit_law,
    posterior_of,
    rank,
)
from probq.training.svi.elbo.leave_one_out import leave_one_out

MODELS = {small.name: small for small in enumerable()}


def test_the_joint_law_gives_the_bound_of_the_other_oracle() -> None:
    q, x = MODELS["two layers"].quantized()
    y = MODELS["two layers"].targets(q, x)
    with torch.no_grad():
        q.weights["0.weight"].logits.fill_(0.4)
    bound = enumerate_joint(q, x, y).elbo(*posterior_of(q)).detach()
    assert float(bound) == pytest.approx(enumerate_elbo(q, x, y), rel=1e-5)


def test_evidence_of_one_weight_by_hand() -> None:
    """`w` in {0} or {-s, s}, one observation: three densities."""
    torch.manual_seed(0)
    plan = probq.Plan(weight=ladder(0, binary()), network_input=ladder(8), scales="tensor")
    x, y = torch.tensor([[1.0]]), torch.tensor([[0.4]])
    q = probq.quantize(nn.Sequential(nn.Linear(1, 1, bias=False)), x, plan, Normal(0.5))
    scale = float(q.weights["0.weight"].scales()[1].detach())
    density = stats.norm(0, 0.5).pdf
    pruned, open_ = 0.5 * density(0.4), 0.25 * (density(0.4 - scale) + density(0.4 + scale))
    joint = enumerate_joint(q, x, y)
    assert joint.exact_widths()[(1, 0)] == pytest.approx(open_ / (pruned + open_), rel=1e-6)
    best = best_mean_field(joint, restarts=3)  # one weight: mean field is exact
    assert best.elbo == pytest.approx(math.log(pruned + open_), rel=1e-6)
    assert float(best.widths[0][1]) == pytest.approx(open_ / (pruned + open_), rel=1e-5)


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize("name", ["linear, ternary", "shared weight"])
def test_the_best_mean_field_is_a_stationary_point(name: str) -> None:
    """Its bound is below the log-evidence, and its exact gradient within the simplex is zero."""
    small = MODELS[name]
    q, x = small.quantized()
    joint = enumerate_joint(q, x, small.targets(q, x))
    best = best_mean_field(joint, restarts=6)
    assert best.elbo < np.logaddexp.reduce(list(joint.log_evidence().values()))
    leaves = [p.clone().clamp_min(1e-12).log().requires_grad_() for p in (*best.widths, *itertools.chain(*best.codes))]
    laws = iter([torch.softmax(leaf, -1) for leaf in leaves])
    widths = [next(laws) for _ in best.widths]
    codes = [[next(laws) for _ in of] for of in best.codes]
    for grad in torch.autograd.grad(joint.elbo(widths, codes), leaves):
        assert float(grad.abs().max()) < 1e-3


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize("name", ["logistic", "softmax, ternary", "shared weight"])
def test_a_fit_with_unbiased_gradients_finds_the_best_mean_field(name: str) -> None:
    """Records of all networks and of every estimator are in benchmarks/results_estimators.json."""
    small = MODELS[name]
    q, x = small.quantized()
    y = small.targets(q, x)
    joint = enumerate_joint(q, x, y)
    best = best_mean_fields(joint, restarts=8)
    torch.manual_seed(0)
    fit_law(q, partial(leave_one_out, q, x, y, draws=64), steps=400)
    with torch.no_grad():
        found = posterior_of(q)
        assert float(joint.elbo(*found)) == pytest.approx(best[0].elbo, rel=0.01)
    assert max(distance(*found, best)) < 0.02


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize("name", ["logistic", "shared weight"])
def test_fit_finds_the_best_mean_field_where_it_can_be_enumerated(name: str) -> None:
    """With its defaults at temperature 1; records of all networks are in benchmarks/results_estimators.json."""
    small = MODELS[name]
    q, x = small.quantized()
    y = small.targets(q, x)
    history = probq.fit(q, [(x, y)], epochs=300, temperature=1.0, seed=0, progress=False)
    assert {step.phase for step in history.steps} == {"search"}
    joint = enumerate_joint(q, x, y)  # scales have moved
    best = best_mean_fields(joint, restarts=8)
    with torch.no_grad():
        found = posterior_of(q)
        assert float(joint.elbo(*found)) == pytest.approx(best[0].elbo, rel=0.01)
    assert max(distance(*found, best)) < 0.02


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_a_symmetric_network_has_several_best_posteriors() -> None:
    """`W tanh(W x)` is the same for `-W`: the levels of one best posterior, reversed, are another."""
    small = MODELS["shared weight"]
    q, x = small.quantized(activation=None)  # the function itself is odd, its table need not be
    best = best_mean_fields(enumerate_joint(q, x, small.targets(q, x)), restarts=8)
    first = best[0]
    mirrored = [[law.flip(-1) for law in of] for of in first.codes]
    assert max(distance(first.widths, mirrored, best)) < 1e-3
    assert max(distance(first.widths, mirrored, best[:1])) > 0.5


def simulated(small: Small, repetitions: int) -> tuple[list[float], list[tuple[float, float]]]:
    """Ranks of the true widths under the exact posterior, and (probability, came) of each rung above the first."""
    q, x = small.quantized()
    joint = enumerate_joint(q, x, small.targets(q, x))
    ranks: list[float] = []
    pairs: list[tuple[float, float]] = []
    for number in range(repetitions):
        generator = np.random.default_rng([7, number])
        truth, y = draw_from_prior(q, joint, generator)
        probs: dict[Any, float] = joint.given(q, y).exact_widths()
        ranks.append(rank(probs, truth, generator))
        pairs += [
            (sum(p for rungs, p in probs.items() if rungs[u] == 1), float(truth[u] == 1)) for u in range(len(truth))
        ]
    return ranks, [pair for pair in pairs if 0 < pair[0] < 1]


def test_the_exact_posterior_is_calibrated_on_data_from_the_model() -> None:
    """Stated beforehand: ranks uniform at 0.1 %, probabilities within 3.3 standard deviations of what came."""
    ranks, pairs = simulated(MODELS["linear"], 60)
    excess, deviation = calibration(pairs)
    assert stats.kstest(ranks, "uniform").pvalue > 0.001
    assert abs(excess) < 3.3 * deviation


def test_a_posterior_that_is_too_sure_is_found_out() -> None:
    generator = np.random.default_rng(0)
    came = generator.random(400) < 0.6
    excess, deviation = calibration([(0.9, float(c)) for c in came])
    assert abs(excess) > 3.3 * deviation
    ranks = [rank({0: 0.1, 1: 0.9}, int(c), generator) for c in came]
    assert stats.kstest(ranks, "uniform").pvalue < 0.001
