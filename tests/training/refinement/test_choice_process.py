"""The Gaussian process of choices against ridge regression on features, and what leaving out each choice gives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from probq.training.refinement.prediction.choice_process import ChoiceProcess

SIZES = (3, 4)
STATES = np.array(list(itertools.product(*map(range, SIZES))))


def features(likeness: list[np.ndarray] | None) -> np.ndarray:
    """One-hot options of all states, or mixtures of them with the same products as the likeness."""
    roots = [np.eye(size) if likeness is None else np.linalg.cholesky(likeness[k]) for k, size in enumerate(SIZES)]
    return np.concatenate([root[STATES[:, k]] for k, root in enumerate(roots)], 1)


@pytest.mark.parametrize("near", [False, True])
def test_expected_values_are_those_of_a_ridge_regression(near: bool) -> None:
    random = np.random.default_rng(0)
    likeness = [np.exp(-np.abs(np.subtract.outer(*2 * [np.arange(size)])) / 2) for size in SIZES] if near else None
    log_probs = [np.log(random.dirichlet(np.ones(size))) for size in SIZES]
    seen, values, slope, ratio = random.permutation(len(STATES))[:7], random.normal(size=7), 0.3, 0.2
    process = ChoiceProcess(STATES[seen], values, log_probs, slope, ratio, likeness)
    before = log_probs[0][STATES[:, 0]] + log_probs[1][STATES[:, 1]]
    x, rest = features(likeness), values + slope * before[seen]
    ridge = Ridge(alpha=len(SIZES) * ratio, fit_intercept=False)
    expected = ridge.fit(x[seen], rest - rest.mean()).predict(x) + rest.mean() - slope * before
    np.testing.assert_allclose(process(STATES), expected, atol=1e-10)
    rows = process.effects()
    np.testing.assert_allclose(rows[0][STATES[:, 0]] + rows[1][STATES[:, 1]] + process.offset, expected, atol=1e-10)
    missed = []
    for k in range(len(seen)):
        others = np.delete(np.arange(len(seen)), k)
        own = (rest - rest.mean())[others]
        missed.append((rest - rest.mean())[k] - ridge.fit(x[seen[others]], own).predict(x[seen[[k]]])[0])
    assert process.error == pytest.approx(np.sqrt(np.mean(np.square(missed))))


def test_options_that_were_never_measured_take_after_their_neighbours() -> None:
    near = [np.exp(-np.abs(np.subtract.outer(*2 * [np.arange(4)])))]
    seen, values, flat = np.array([[0], [3]]), np.array([0.0, 6.0]), [np.zeros(4)]
    alone = ChoiceProcess(seen, values, flat, ratio=1e-6)(np.arange(4)[:, None])
    np.testing.assert_allclose(alone, [0, 3, 3, 6], atol=1e-4)
    found = ChoiceProcess(seen, values, flat, ratio=1e-6, likeness=near)(np.arange(4)[:, None])
    assert all(np.diff(found) > 0.5)
