"""Metrics and parts of the uncertainty, against scikit-learn, scipy, hand algebra and plain loops."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from probq import ProbqError, calibration, uncertainty
from probq.evaluation.metrics.reliability import reliability_of

RANDOM = np.random.default_rng(7)
PROBS = RANDOM.dirichlet(np.ones(4), size=200)
LABELS = np.array([RANDOM.choice(4, p=p) for p in PROBS])


def test_negative_log_likelihood_is_log_loss() -> None:
    expected = metrics.log_loss(LABELS, PROBS, labels=range(4))
    assert calibration.negative_log_likelihood(PROBS, LABELS) == pytest.approx(expected, rel=1e-12)
    assert calibration.negative_log_likelihood([[1, 0]], [1]) == math.inf


def test_brier_is_the_sum_over_classes() -> None:
    of_classes = [metrics.brier_score_loss(k == LABELS, PROBS[:, k]) for k in range(4)]
    assert calibration.brier(PROBS, LABELS) == pytest.approx(sum(of_classes), rel=1e-12)
    assert (calibration.brier([[1, 0]], [0]), calibration.brier([[1, 0]], [1])) == (0, 2)


def test_reliability_by_loop() -> None:
    found = calibration.reliability(PROBS, LABELS, bins=5)
    for b in range(5):
        inside = [i for i, p in enumerate(PROBS) if b / 5 < max(p) <= (b + 1) / 5]
        assert found.counts[b] == len(inside)
        if inside:
            assert found.confidence[b] == pytest.approx(sum(max(PROBS[i]) for i in inside) / len(inside))
            assert found.accuracy[b] == sum(PROBS[i].argmax() == LABELS[i] for i in inside) / len(inside)
        else:
            assert math.isnan(found.confidence[b])
    assert found.counts[0] == 0  # four classes: the largest probability is above 1 / 4


def test_bins_are_those_of_scikit_learn_for_two_classes() -> None:
    from sklearn.calibration import calibration_curve

    p = RANDOM.uniform(0.5, 1, 300)
    right = RANDOM.random(300) < p
    found = calibration.reliability(np.stack([1 - p, p], 1), right.astype(int), bins=10)
    accuracy, confidence = calibration_curve(right, p, n_bins=10)
    np.testing.assert_allclose(found.accuracy[found.counts > 0], accuracy)
    np.testing.assert_allclose(found.confidence[found.counts > 0], confidence)


def test_expected_calibration_error_by_hand() -> None:
    # 0.9, 0.9: one right of two; 0.6: right. 2/3 |1/2 - 0.9| + 1/3 |1 - 0.6|
    probs, labels = [[0.9, 0.1], [0.1, 0.9], [0.6, 0.4]], [0, 0, 0]
    assert calibration.expected_calibration_error(probs, labels, bins=2) == pytest.approx(abs(2 / 3 - 0.8))
    assert calibration.expected_calibration_error(probs, labels, bins=10) == pytest.approx(2 / 3 * 0.4 + 1 / 3 * 0.4)
    assert calibration.expected_calibration_error([[1, 0], [0, 1]], [0, 1]) == 0


def test_honest_probabilities_have_a_small_error() -> None:
    generator = np.random.default_rng(1)
    probs = generator.dirichlet(np.ones(3), size=20000)
    labels = (generator.random((20000, 1)) > probs.cumsum(1)).sum(1)
    assert calibration.expected_calibration_error(probs, labels) < 0.02
    sharpened = probs**3 / (probs**3).sum(1, keepdims=True)
    assert calibration.expected_calibration_error(sharpened, labels) > 0.1


def test_accuracy_rejection_is_the_mean_over_orders_of_ties() -> None:
    scores, right = np.round(RANDOM.random(40), 1), RANDOM.random(40) < 0.7
    curves = []
    for _ in range(4000):
        order = np.lexsort((RANDOM.random(40), scores))
        curves.append((right[order].cumsum() / np.arange(1, 41))[::-1])
    found = calibration.accuracy_rejection(scores, right)
    np.testing.assert_allclose(found.accuracy, np.mean(curves, 0), atol=0.03)
    assert found.accuracy[0] == pytest.approx(right.mean())
    np.testing.assert_allclose(found.rejected, np.arange(40) / 40)
    assert found.area == pytest.approx(found.accuracy.mean())


def test_auroc_is_that_of_scikit_learn_and_of_all_pairs() -> None:
    low, high = np.round(RANDOM.normal(0, 1, 50), 1), np.round(RANDOM.normal(1, 1, 30), 1)
    found = calibration.ood_auroc(low, high)
    labels = np.repeat([0, 1], [50, 30])
    assert found == pytest.approx(metrics.roc_auc_score(labels, np.concatenate([low, high])), rel=1e-12)
    pairs = (high[:, None] > low).mean() + (high[:, None] == low).mean() / 2
    assert found == pytest.approx(pairs, rel=1e-12)


def test_interval_of_a_mean_is_that_of_scipy() -> None:
    values = RANDOM.normal(3, 2, 400)
    found = calibration.interval(np.mean, values, resamples=3000, level=0.9)
    se = stats.sem(values)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() + stats.norm.ppf(0.05) * se, abs=0.1 * se)
    assert found.high == pytest.approx(values.mean() + stats.norm.ppf(0.95) * se, abs=0.1 * se)


def test_an_interval_has_the_percentiles_of_a_loop() -> None:
    generator, values = np.random.default_rng(3), []
    for _ in range(150):
        drawn = generator.integers(200, size=200)
        values.append(calibration.brier(PROBS[drawn], LABELS[drawn]))
    found = calibration.interval(calibration.brier, PROBS, LABELS, level=0.9, resamples=150, seed=3)
    assert found[1:] == pytest.approx(np.quantile(values, [0.05, 0.95]), rel=1e-12)


def test_an_interval_of_one_row_is_its_value() -> None:
    assert calibration.interval(np.mean, [2.5]) == (2.5, 2.5, 2.5)


def test_interval_draws_rows_together_and_passes_options() -> None:
    found = calibration.interval(calibration.expected_calibration_error, PROBS, LABELS, bins=5, resamples=200)
    assert found.value == calibration.expected_calibration_error(PROBS, LABELS, bins=5)
    assert found.low < found.high
    again = calibration.interval(calibration.expected_calibration_error, PROBS, LABELS, bins=5, resamples=200)
    other = calibration.interval(calibration.expected_calibration_error, PROBS, LABELS, bins=5, resamples=200, seed=1)
    assert found == again != other


def test_an_interval_may_end_at_infinity() -> None:
    """Of n draws of the row with an infinite loss the count is Binomial(n, 1 / n); none leaves the finite losses."""
    probs, labels = [[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]], [1, 1, 0]
    found = calibration.interval(calibration.negative_log_likelihood, probs, labels, resamples=200)
    assert stats.binom(3, 1 / 3).pmf(0) > 0.025
    assert found == (math.inf, pytest.approx(math.log(2)), math.inf)


@pytest.mark.parametrize("bins", [3, 7, 10, 15, 20])
def test_a_confidence_on_an_edge_is_in_the_bin_below(bins: int) -> None:
    edges = np.array([k / bins for k in range(1, bins + 1)])
    found = reliability_of(edges, np.ones(bins), bins)
    assert found.counts.tolist() == [1] * bins


GOOD = [[0.5, 0.5], [0.2, 0.8]]
BAD: dict[str, tuple[Any, str]] = {
    "nan in probs": (lambda: calibration.brier([[math.nan, 1]], [0]), "probs holds nan at index"),
    "nan in labels": (lambda: calibration.brier(GOOD, [0, math.nan]), "labels holds nan"),
    "nan in scores": (lambda: calibration.ood_auroc([0.1], [math.nan]), "shifted holds nan"),
    "logits": (lambda: calibration.negative_log_likelihood([[2.0, 3.0]], [0]), "sum to 1"),
    "negative": (lambda: calibration.brier([[-0.5, 1.5]], [0]), "sum to 1"),
    "one axis": (lambda: calibration.brier([0.5, 0.5], [0]), "shape"),
    "labels too many": (lambda: calibration.brier(GOOD, [0]), r"labels must have the shape \[2\]"),
    "no such class": (lambda: calibration.brier(GOOD, [0, 2]), "classes 0 .. 1"),
    "half a class": (lambda: calibration.brier(GOOD, [0, 0.5]), "classes 0 .. 1"),
    "no bins": (lambda: calibration.reliability(GOOD, [0, 1], bins=0), "bins"),
    "words": (lambda: calibration.brier("probs", [0]), "array of numbers"),
    "nothing": (lambda: calibration.ood_auroc([], [1.0]), "familiar must be a list of at least one"),
    "lengths": (lambda: calibration.accuracy_rejection([0.1, 0.2], [True]), "as long as"),
    "not right or wrong": (lambda: calibration.accuracy_rejection([0.1], [2]), "True or False"),
    "lengths of rows": (lambda: calibration.interval(calibration.brier, GOOD, [0]), "one length"),
    "level": (lambda: calibration.interval(np.mean, [1.0], level=95), "level"),
    "nan of a metric": (lambda: calibration.interval(lambda v: math.nan, [1.0]), "<lambda> is NaN"),
    "no draws": (lambda: uncertainty.classification(GOOD), r"\[draws, batch, classes\]"),
    "no batch": (lambda: uncertainty.regression([1.0, 2.0]), r"\[draws, batch, ...\]"),
    "negative variance": (lambda: uncertainty.regression([[1.0]], -1.0), "negative"),
    "variances that do not fit": (lambda: uncertainty.regression([[1.0]], [1.0, 2.0]), "do not fit"),
    "infinite logits": (lambda: uncertainty.softmax([math.inf, 0]), "logits holds inf"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(ProbqError, match=message):
        call()


def test_parts_of_class_uncertainty_are_those_of_the_joint_law() -> None:
    """Mutual information from the joint table of member and class, without any entropy of a mean."""
    probs = RANDOM.dirichlet(np.ones(3), size=(5, 7))
    found = uncertainty.classification(probs)
    for row in range(7):
        table = probs[:, row] / 5
        product = table.sum(1, keepdims=True) * table.sum(0, keepdims=True)
        assert found.epistemic[row] == pytest.approx((table * np.log(table / product)).sum())
        assert found.total[row] == pytest.approx(stats.entropy(table.sum(0)))
        assert found.aleatoric[row] == pytest.approx(np.mean([stats.entropy(p) for p in probs[:, row]]))
    np.testing.assert_allclose(found.total, found.aleatoric + found.epistemic)
    np.testing.assert_allclose(found.mean.sum(-1), 1)


def test_members_that_agree_have_no_epistemic_part() -> None:
    one = RANDOM.dirichlet(np.ones(3), size=6)
    np.testing.assert_allclose(uncertainty.classification([one, one]).epistemic, 0, atol=1e-12)
    assert uncertainty.classification([[[1.0, 0.0]]]).total.tolist() == [0.0]


def test_variance_parts_are_those_of_the_mixture() -> None:
    """Variance of a mixture of normals from draws of it."""
    means, variances = np.array([[1.0], [2.0], [5.0]]), np.array([[0.25], [1.0], [4.0]])
    found = uncertainty.regression(means, variances)
    member = RANDOM.integers(3, size=400_000)
    drawn = RANDOM.normal(means[member, 0], np.sqrt(variances[member, 0]))
    assert found.total[0] == pytest.approx(drawn.var(), rel=0.02)
    assert found.mean[0] == pytest.approx(drawn.mean(), rel=0.01)
    assert (found.aleatoric[0], found.epistemic[0]) == pytest.approx((1.75, 26 / 9))


def test_softmax_is_that_of_scipy() -> None:
    from scipy.special import softmax

    logits = RANDOM.normal(0, 300, (4, 5))
    np.testing.assert_allclose(uncertainty.softmax(logits), softmax(logits, axis=-1), rtol=1e-12)
