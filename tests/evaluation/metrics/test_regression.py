"""Scores and intervals of predicted numbers, against numerical integration and root finding by scipy, and draws."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats

from probq import ProbqError, calibration, regression

RANDOM = np.random.default_rng(3)
MEANS, SDS = RANDOM.normal(0, 2, (5, 7)), RANDOM.uniform(0.3, 2, (5, 7))
TARGETS = RANDOM.normal(0, 3, 7)


def cdf(y: float, k: int) -> float:
    """Of the mixture for example `k`."""
    return float(stats.norm.cdf(y, MEANS[:, k], SDS[:, k]).mean())


def test_scores_are_those_of_scipy_by_integration() -> None:
    found = regression.scores(MEANS, SDS**2, TARGETS)
    for k, y in enumerate(TARGETS):
        density = stats.norm.pdf(y, MEANS[:, k], SDS[:, k]).mean()
        below = integrate.quad(lambda t, k=k: cdf(t, k) ** 2, -40, y, limit=200)[0]
        above = integrate.quad(lambda t, k=k: (1 - cdf(t, k)) ** 2, y, 40, limit=200)[0]
        assert found.nll[k] == pytest.approx(-math.log(density), rel=1e-10)
        assert found.crps[k] == pytest.approx(below + above, rel=1e-6)
        assert found.pit[k] == pytest.approx(cdf(y, k), rel=1e-10)


def test_crps_is_the_energy_form_of_draws() -> None:
    """`E|Y - y| - E|Y - Y'| / 2`, Gneiting and Raftery's equation 21, by Monte Carlo."""
    rows = RANDOM.integers(5, size=(2, 200_000))
    one, other = (RANDOM.normal(MEANS[row, 0], SDS[row, 0]) for row in rows)
    expected = np.abs(one - TARGETS[0]).mean() - np.abs(one - other).mean() / 2
    assert regression.scores(MEANS, SDS**2, TARGETS).crps[0] == pytest.approx(expected, rel=0.02)


def test_one_sharp_draw_is_a_point() -> None:
    found = regression.scores([[1.0, 2.0]], 1e-18, [4.0, 2.0])
    np.testing.assert_allclose(found.crps, [3, 0], atol=1e-8)
    assert found.pit.tolist() == [1, 0.5]


def test_far_targets_have_a_finite_score() -> None:
    (nll,) = regression.scores([[0.0], [0.0]], 1.0, [100.0]).nll
    assert nll == pytest.approx(-stats.norm.logpdf(100.0), rel=1e-12)


@pytest.mark.parametrize("level", [0.05, 0.5, 0.999])
def test_band_is_between_the_roots_of_the_law(level: float) -> None:
    low, high = regression.band(MEANS, SDS**2, level)
    for k in range(7):
        for end, p in ((low[k], (1 - level) / 2), (high[k], (1 + level) / 2)):
            root = optimize.brentq(lambda t, k=k, p=p: cdf(t, k) - p, -60, 60, xtol=1e-12)
            assert end == pytest.approx(root, abs=1e-9)


def test_band_of_one_draw_is_that_of_the_normal_law() -> None:
    low, high = regression.band(MEANS[:1], 4.0, 0.9)
    np.testing.assert_allclose([low, high], stats.norm.interval(0.9, MEANS[0], 2.0), rtol=1e-12)


def test_coverage_counts_what_lies_within_the_band() -> None:
    means, y = RANDOM.normal(0, 1, (4, 300)), RANDOM.normal(0, 1.3, 300)
    found = regression.coverage(means, 0.5, y, levels=[0.3, 0.8])
    pit = regression.scores(means, 0.5, y).pit
    for k, level in enumerate(found.levels):
        low, high = regression.band(means, 0.5, level)
        assert found.width[k] == pytest.approx((high - low).mean())
        hits = int((np.abs(2 * pit - 1) <= level).sum())
        assert found.share[k] * 300 == pytest.approx(hits)
        ends = stats.beta(hits + 0.5, 300 - hits + 0.5).interval(0.94)
        assert (found.low[k], found.high[k]) == pytest.approx(ends)
    assert found.n == 300


def test_honest_predictions_keep_their_promise_and_narrow_ones_do_not() -> None:
    means = RANDOM.normal(0, 1, (3, 20_000))
    drawn = RANDOM.normal(means[RANDOM.integers(3, size=20_000), np.arange(20_000)], 0.7)
    honest = regression.coverage(means, 0.49, drawn)
    assert len(honest.levels) == 19
    np.testing.assert_allclose(honest.share, honest.levels, atol=0.02)
    narrow = regression.coverage(means, 0.1, drawn, levels=[0.9])
    assert narrow.high[0] < 0.8
    assert regression.scores(means, 0.49, drawn).crps.mean() < regression.scores(means, 0.1, drawn).crps.mean()
    assert stats.kstest(regression.scores(means, 0.49, drawn).pit, "uniform").pvalue > 0.001


def test_last_axis_of_one_and_tensors_are_taken() -> None:
    plain = regression.scores(MEANS, SDS**2, TARGETS)
    column = regression.scores(torch.tensor(MEANS)[..., None], SDS[..., None] ** 2, torch.tensor(TARGETS)[:, None])
    for a, b in zip(plain, column, strict=True):
        np.testing.assert_array_equal(a, b)
    per_draw = regression.scores(MEANS, np.full((5, 1), 0.25), TARGETS)
    np.testing.assert_array_equal(per_draw.nll, regression.scores(MEANS, 0.25, TARGETS).nll)


def test_scores_take_a_bootstrap_interval() -> None:
    crps = regression.scores(MEANS, SDS**2, TARGETS).crps
    found = calibration.interval(np.mean, crps, resamples=100)
    assert found.low < found.value == crps.mean() < found.high


GOOD = [[0.0, 1.0], [0.5, 2.0]]
PROBS = np.full((2, 3, 4), 0.25)
BAD: dict[str, tuple[Any, str]] = {
    "probabilities of draws": (lambda: regression.scores(PROBS, 1.0, [0, 1, 3]), "use probq.calibration"),
    "probabilities": (lambda: regression.scores(PROBS[0], 1.0, [0, 1, 3]), "for classes use probq.calibration"),
    "noise of classes": (lambda: regression.band(GOOD, None), "variances is None.* probq.calibration"),
    "several outputs": (lambda: regression.band(np.ones((2, 3, 2)), 1.0), r"one at a time, means\[..., k\]"),
    "no draws": (lambda: regression.scores([1.0], 1.0, [1.0]), r"\[draws, n\]"),
    "no row": (lambda: regression.scores(np.ones((2, 0)), 1.0, []), r"\[draws, n\]"),
    "targets too many": (lambda: regression.scores(GOOD, 1.0, [1.0]), r"targets must have the shape \[2\]"),
    "nan in means": (lambda: regression.scores([[math.nan]], 1.0, [1.0]), "means holds nan"),
    "nan in targets": (lambda: regression.scores([[1.0]], 1.0, [math.nan]), "targets holds nan"),
    "no noise": (lambda: regression.scores(GOOD, 0.0, [1.0, 1.0]), "above 0"),
    "variances that do not fit": (lambda: regression.scores(GOOD, [1.0, 1.0, 1.0], [1.0, 1.0]), "do not fit"),
    "more variances": (lambda: regression.scores([[1.0, 1.0]], np.ones((2, 2)), [1.0, 1.0]), "do not fit"),
    "percent": (lambda: regression.band(GOOD, 1.0, 90), "between 0 and 1"),
    "no level": (lambda: regression.coverage(GOOD, 1.0, [1.0, 1.0], levels=[]), "between 0 and 1"),
    "level 1": (lambda: regression.coverage(GOOD, 1.0, [1.0, 1.0], levels=[0.5, 1.0]), "between 0 and 1"),
    "the other way round": (lambda: calibration.brier([[1.3], [0.2]], [1.1, 0.2]), "use probq.regression"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(ProbqError, match=message):
        call()
