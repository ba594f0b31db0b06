"""Which law a target has, where its classes are, and options; against `cross_entropy` and numpy.

What all likelihoods keep is in `tests/conformance`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import probq
from probq import ProbqError, Quantized
from probq.evaluation.diagnostics.held_out import validate
from probq.evaluation.reporting.calibration import predicted
from probq.likelihoods import Categorical, categorical, for_target
from probq.utils.batches import Batches

CPU = torch.device("cpu")
N, C = 12, 3


class Moved(nn.Module):
    """Classes on the last axis: `[N, T, C]`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(2, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).movedim(1, -1)


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...], int]] = {
    # network, shape of an input, shape of a target, axis of the classes
    "images": (lambda: nn.Conv2d(2, C, 1), (2, 4, 5), (4, 5), 1),
    "sequences": (lambda: nn.Conv1d(2, C, 1), (2, 7), (7,), 1),
    "volumes": (lambda: nn.Conv3d(2, C, 1), (2, 2, 4, 5), (2, 4, 5), 1),
    "one pixel": (lambda: nn.Conv2d(2, C, 1), (2, 1, 1), (), 1),
    "as many pixels as classes, but not examples": (lambda: nn.Conv2d(2, C, 1), (2, C, 5), (C, 5), 1),
    "words": (Moved, (2, 7), (7,), -1),
    "rows": (lambda: nn.Linear(2, C), (2,), (), -1),
}


def case(kind: str, ignored: int = -100) -> tuple[Quantized, Tensor, Tensor, int]:
    net, shape, of_target, axis = KINDS[kind]
    torch.manual_seed(5)
    x, y = torch.randn(N, *shape), torch.randint(C, (N, *of_target))
    y[1] = ignored
    return probq.quantize(net(), x), x, y, axis


def by_hand(output: Tensor, y: Tensor, axis: int, ignored: int = -100) -> float:
    seen = y.numpy() != ignored
    return float((output.numpy().argmax(axis).reshape(y.shape) == y.numpy())[seen].mean())


@pytest.mark.parametrize("kind", KINDS)
def test_classes_lie_where_the_shapes_allow(kind: str) -> None:
    q, x, y, axis = case(kind)
    history = probq.fit(q, [(x, y)], epochs=2, validation=[(x, y)], progress=False, seed=0)
    output = q(x).detach()
    found = history.validation[-1]
    assert found["accuracy"] == pytest.approx(by_hand(output, y, axis))
    logits = output.movedim(axis, 1).reshape(N, C, *y.shape[1:])
    assert found["loss"] == pytest.approx(float(F.cross_entropy(logits, y, reduction="sum")) / N)


@pytest.mark.parametrize("kind", ["images", "words"])
def test_weights_and_ignored_targets_are_those_of_cross_entropy(kind: str) -> None:
    q, x, y, axis = case(kind, ignored=255)
    y = y.to(torch.uint8)
    weight = torch.tensor([0.5, 2.0, 1.0])
    likelihood = Categorical(axis, weight, ignore_index=255)
    history = probq.fit(q, [(x, y)], epochs=2, validation=[(x, y)], progress=False, likelihood=likelihood, seed=0)
    output = q(x).detach()
    expected = F.cross_entropy(output.movedim(axis, 1), y.long(), weight, ignore_index=255, reduction="sum")
    assert history.validation[-1]["loss"] == pytest.approx(float(expected) / N)
    assert history.validation[-1]["accuracy"] == pytest.approx(by_hand(output, y, axis, 255))


def test_a_byte_of_156_is_a_class_and_not_minus_100() -> None:
    law = categorical(torch.zeros(1, 200))
    assert float(law.log_prob(torch.tensor([156], dtype=torch.uint8))) == pytest.approx(-np.log(200))


def test_shapes_that_allow_both_axes_are_asked_about() -> None:
    x, y = torch.rand(4, 2, C), torch.zeros(4, C, dtype=torch.int64)
    q = probq.quantize(nn.Conv1d(2, C, 1), x)
    with pytest.raises(ProbqError, match=r"axis 1 or on the last one; say which .*Categorical\(axis=1\)"):
        probq.fit(q, [(x, y)], progress=False)
    history = probq.fit(q, [(x, y)], epochs=1, likelihood=Categorical(1), validation=[(x, y)], progress=False)
    assert history.validation[0]["accuracy"] == pytest.approx(by_hand(q(x).detach(), y, 1))


WRONG: dict[str, tuple[Tensor, str]] = {
    "an axis changed": (torch.zeros(N, 5, 4, dtype=torch.int64), r"name that axis by .*Categorical\(axis"),
    "one-hot": (torch.zeros(N, C, 4, 5, dtype=torch.int64), r"give classes, e.g. y.argmax"),
    "a class too many": (torch.full((N, 4, 5), C), rf"a target is {C}, but the outputs have classes 0 to 2"),
    "a class below": (torch.full((N, 4, 5), -1), r"a target is -1, .*ignore_index"),
}


@pytest.mark.parametrize(("y", "part"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("late", [False, True])
def test_targets_that_do_not_fit_are_told_of_in_a_sentence(y: Tensor, part: str, late: bool) -> None:
    q, x, good, _ = case("images")
    batches = [(x, good), (x, y)] if late else [(x, y)]
    with pytest.raises(ProbqError, match=part) as told:
        probq.fit(q, batches, epochs=1, progress=False)
    assert "\n" not in str(told.value)


def test_a_likelihood_that_moves_the_axis_has_the_accuracy_of_its_law() -> None:
    q, x, y, _ = case("images", ignored=0)
    q.likelihood = lambda output: torch.distributions.Categorical(logits=output.movedim(1, -1))
    assert validate(q, Batches([(x, y)], CPU))["accuracy"] == pytest.approx(by_hand(q(x).detach(), y, 1))


def test_where_nothing_is_observed_there_is_no_accuracy() -> None:
    q, x, y, _ = case("images")
    assert validate(q, Batches([(x, torch.full_like(y, -100))], CPU)) == {"loss": 0.0}


def test_a_file_keeps_the_options(tmp_path: Path) -> None:
    for likelihood in (
        Categorical(1, [1.0, 2.0, 0.5], 255),
        Categorical(-2),
        Categorical(1, smoothing=0.1),
        categorical,
    ):
        q = probq.quantize(nn.Conv2d(2, C, 1), torch.rand(N, 2, 4, 5), likelihood=likelihood)
        q.save(tmp_path / "q")
        again = probq.load(tmp_path / "q", nn.Conv2d(2, C, 1)).likelihood
        assert repr(again) == repr(likelihood)


@pytest.mark.parametrize("weight", [None, [0.5, 2.0, 1.0]])
def test_smoothed_targets_are_those_of_cross_entropy_in_training_alone(weight: list[float] | None) -> None:
    generator = torch.Generator().manual_seed(2)
    output = torch.randn(N, C, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randint(C, (N, 7), generator=generator)
    y[1] = 255
    likelihood = Categorical(1, weight, 255, smoothing=0.2)
    tensor = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    likelihood.weight = tensor
    for training, smoothing in ((True, 0.2), (False, 0.0)):
        loss = -likelihood.train(training)(output).log_prob(y).sum()
        other = F.cross_entropy(output, y, tensor, ignore_index=255, reduction="sum", label_smoothing=smoothing)
        torch.testing.assert_close(loss, other)
        torch.testing.assert_close(torch.autograd.grad(loss, output), torch.autograd.grad(other, output))


def test_smoothing_is_the_mean_over_targets_that_are_drawn_anew() -> None:
    output, y, share = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64), torch.tensor([1]), 0.3
    odds = F.one_hot(y, C) * (1 - share) + share / C  # of each class to be drawn in the place of y
    plain = torch.stack([categorical(output).log_prob(torch.tensor([k])) for k in range(C)], 1)
    torch.testing.assert_close(Categorical(smoothing=share)(output).log_prob(y), (odds * plain).sum(1))


def test_a_fit_of_smoothed_targets_validates_by_the_targets_themselves() -> None:
    q, x, y, _ = case("rows")
    history = probq.fit(
        q, [(x, y)], epochs=2, validation=[(x, y)], progress=False, likelihood=Categorical(smoothing=0.3), seed=0
    )
    loss = F.cross_entropy(q(x).detach(), y, reduction="sum") / N
    assert history.validation[-1]["loss"] == pytest.approx(float(loss))
    assert float(q.train().law(q(x)).log_prob(y).sum() / -N) > float(loss) + 1e-3


def test_chains_of_other_options_are_not_compared() -> None:
    (a, *_), (b, *_) = case("images"), case("images")
    a.likelihood, b.likelihood = Categorical(1), Categorical(1, ignore_index=255)
    with pytest.raises(ProbqError, match="differ in their likelihood"):
        probq.convergence([a, b])


def test_calibration_takes_every_observed_target() -> None:
    q, x, y, _ = case("images")
    q = q.at(q.mode())
    probabilities, classes, _, _ = predicted(q, [(x, y)], 2)
    kept = (y != -100).flatten()
    np.testing.assert_array_equal(classes, y.flatten()[kept].numpy())
    expected = torch.stack([o.softmax(1) for o in q.outputs(q.sample(2, seed=0), x)]).mean(0)
    np.testing.assert_allclose(probabilities, expected.movedim(1, -1).reshape(-1, C)[kept].numpy(), rtol=1e-5)


def test_an_ensemble_knows_the_axis_of_its_classes(tmp_path: Path) -> None:
    q, x, _, _ = case("images")
    q.likelihood = Categorical(1)
    q = q.at(q.mode())
    probq.ensemble(q, 2).save(tmp_path / "members")
    members = probq.Ensemble.load(tmp_path / "members")
    expected = torch.from_numpy(members.outputs(x.numpy())).softmax(2).mean(0).movedim(1, -1)
    np.testing.assert_allclose(members.classes(x.numpy()).mean, expected)
    with pytest.raises(ProbqError, match="axis is that of the classes"):
        members.classes(x.numpy(), axis=4)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: Categorical(0), "axis 0 runs over examples"),
        (lambda: Categorical(weight=[1.0, -1.0]), "0 or more"),
        (lambda: Categorical(weight="heavy"), "a list of numbers"),
        (lambda: Categorical(ignore_index=1.5), "ignore_index is the integer"),
        (lambda: Categorical(smoothing=1), "0 to below 1, not 1"),
        (lambda: Categorical(axis=2)(torch.zeros(2, 3)), "axis 2 of the output"),
        (lambda: Categorical(weight=[1.0])(torch.zeros(2, 3)), "1 numbers for outputs of 3 classes"),
    ],
)
def test_options_that_cannot_be_are_refused(make: Any, part: str) -> None:
    with pytest.raises(ProbqError, match=part):
        make()


def test_the_usual_likelihood_of_flat_outputs_is_one_function() -> None:
    assert for_target(torch.zeros(4, dtype=torch.int64), torch.zeros(4, C)) is categorical
