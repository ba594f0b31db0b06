"""The law of codes of vectors against the law of codes, enumeration, finite differences and goodness of fit."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import kl_divergence

from probq.codebooks import uniform
from probq.codebooks.rounding.vectors import Vectors
from probq.estimators import Gumbel, MeanGradient, ModeForward, SecondOrder, StraightThrough
from probq.network.distributions.codes import Codes
from probq.network.distributions.vector_codes import UniformVectorCodes, VectorCodes

SCALE = torch.tensor([[0.5], [0.25]])


def law(nearest: int = 3, spread: float = 0.4, table: Tensor | None = None) -> VectorCodes:
    torch.manual_seed(3)
    own = torch.randint(-5, 6, (1, 5, 2)).float() if table is None else table
    vectors = Vectors(own, torch.rand(2, 2) + 0.2, (2, 4))
    return VectorCodes(torch.randn(2, 4), SCALE, vectors, torch.tensor(spread), nearest)


def test_one_number_on_a_grid_has_the_law_of_codes() -> None:
    torch.manual_seed(0)
    grid, location = uniform(3), torch.randn(6, 4)
    vectors = Vectors(grid.levels().reshape(1, -1, 1), torch.rand(4, 1) + 0.5, (6, 4))
    one, other = (
        kind(location, torch.tensor(0.5), levels, torch.tensor(0.3), 2)
        for kind, levels in ((VectorCodes, vectors), (Codes, grid))
    )
    assert torch.allclose(one.mean, other.mean, atol=1e-5)
    assert torch.allclose(one.variance, other.variance, atol=1e-5)
    assert torch.allclose(one.entropy(), other.entropy(), rtol=1e-5)
    assert torch.equal(one.mode, other.mode)


def probabilities(own: VectorCodes) -> np.ndarray:
    """The probability of every vector for every sub-vector `[codes, K]`, from the definition in float64."""
    u = (own.location / own.scale).double().numpy().reshape(4, 2)
    h = np.tile(own.levels.importance.double().numpy(), (2, 1))
    table = own.levels.table[0].double().numpy()
    result = np.zeros((4, len(table)))
    for k in range(4):
        distance = (h[k] * (u[k] - table) ** 2).sum(1)
        near = np.argsort(distance)[: own.nearest]
        apart = np.mean([(h[k] * (table[j] - table[near[0]]) ** 2).sum() for j in near[1:]])
        weight = np.exp(-(distance[near] - distance[near[0]]) / (2 * float(own.spread) * apart))
        result[k, near] = weight / weight.sum()
    return result


def test_divergence_mean_and_variance_by_enumeration() -> None:
    own = law()
    probs, table = probabilities(own), own.levels.table[0].double().numpy()
    divergence, mean, square = 0.0, np.zeros(8), np.zeros(8)
    for codes in itertools.product(range(5), repeat=4):
        p = float(np.prod(probs[range(4), codes]))
        if p:
            divergence += p * (math.log(p) + 4 * math.log(5))
            mean += p * table[list(codes)].reshape(-1)
            square += p * table[list(codes)].reshape(-1) ** 2
    prior = UniformVectorCodes(torch.Size((2, 4)), own.levels)
    assert float(kl_divergence(own, prior)) == pytest.approx(divergence, rel=1e-5)
    assert np.allclose(own.mean.reshape(-1).numpy(), mean, atol=1e-5)
    assert np.allclose(own.variance.reshape(-1).numpy(), square - mean**2, atol=1e-4)


def test_draws_have_the_law() -> None:
    own = law()
    probs, table = probabilities(own), own.levels.table[0]
    draws = torch.stack([own.levels.codes(own.rsample()) for _ in range(2000)]).reshape(2000, 4).numpy()
    for k in range(4):
        counts = np.bincount(draws[:, k], minlength=5)
        here = probs[k] > 0
        assert counts[~here].sum() == 0
        assert stats.chisquare(counts[here], 2000 * probs[k][here] / probs[k].sum()).pvalue > 1e-3
    drawn = own.rsample()
    codes = own.levels.codes(drawn).reshape(-1)
    assert torch.equal(table[codes].reshape(2, 4), drawn)
    assert float(own.log_prob(drawn)) == pytest.approx(float(np.log(probs[range(4), codes]).sum()), rel=1e-4)
    assert own.log_prob(torch.full((2, 4), 99.0)) == -math.inf


@pytest.mark.parametrize("estimator", [SecondOrder(), StraightThrough(), MeanGradient(), ModeForward(), Gumbel()])
def test_estimators_draw_vectors_with_gradients_of_locations_and_tables(estimator: object) -> None:
    torch.manual_seed(1)
    table = torch.randint(-5, 6, (1, 5, 2)).float().requires_grad_()
    own = law(table=table)
    own.location.requires_grad_()
    value = estimator.draw(own)  # type: ignore[attr-defined]
    assert value.shape == (2, 4)
    assert torch.isfinite(own.log_prob(value))
    value.sum().backward()
    assert own.location.grad is not None
    assert table.grad is not None
    assert table.grad.abs().sum() > 0
    if isinstance(estimator, StraightThrough):
        assert torch.allclose(own.location.grad * SCALE, torch.ones(2, 4))
    else:  # what moves locations and vectors alike moves each of the 8 weights
        assert float(table.grad.sum() + (own.location.grad * SCALE).sum()) == pytest.approx(8, rel=1e-4)


def test_the_gradient_of_the_mean_is_that_of_differences() -> None:
    own = law()
    location = own.location.double().requires_grad_()
    own.levels.table.data = own.levels.table.double()

    def mean(at: Tensor) -> Tensor:
        return VectorCodes(at, SCALE.double(), own.levels, own.spread.double(), 3).mean.sin().sum()

    assert torch.autograd.gradcheck(mean, (location,), eps=1e-5, atol=1e-4)


def test_one_nearest_vector_is_certain() -> None:
    own = law(nearest=1)
    assert float(own.entropy()) == 0
    assert torch.equal(own.rsample(), own.mode)
    prior = UniformVectorCodes(torch.Size((2, 4)), own.levels)
    assert float(prior.log_prob(own.mode)) == pytest.approx(-4 * math.log(5))
    assert prior.rsample((3,)).shape == (3, 2, 4)
