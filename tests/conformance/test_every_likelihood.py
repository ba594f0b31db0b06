"""What every likelihood must keep: densities by SciPy, gradients by finite differences, losses, accuracies, files.

A new likelihood is one line of `LIKELIHOODS`; a function of the user's own is one too, but no file holds it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from scipy.special import expit, log_softmax
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Laplace, OneHotCategorical, Poisson

import probq
from probq import Quantized
from probq.evaluation.diagnostics.held_out import validate
from probq.likelihoods import Categorical, Normal, categorical
from probq.utils.batches import Batches

CPU = torch.device("cpu")
N, C = 12, 3
WEIGHT = np.array([0.5, 2.0, 1.0])


class Case(NamedTuple):
    """A likelihood.

    Attributes:
        name: of the case.
        make: the likelihood.
        target: the most probable targets, of what the network says.
        density: log-probability of the targets by SciPy, of outputs and targets as arrays; any shape, to be summed.
        classes: whether targets are classes, so that there is an accuracy.
        kept: whether a file holds it.
        ignored: a class that is not observed.
    """

    name: str
    make: Callable[[], Callable[[Tensor], Distribution]]
    target: Callable[[Tensor], Tensor]
    density: Callable[[np.ndarray, np.ndarray], np.ndarray]
    classes: bool = False
    kept: bool = False
    ignored: int | None = None


def of_classes(output: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.take_along_axis(log_softmax(output, -1), y[..., None].astype(int), -1)


def weighted(output: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Class 2 is not observed."""
    return of_classes(output, y) * np.where(y == 2, 0, WEIGHT[y])[..., None]


LIKELIHOODS = (
    Case("categorical", lambda: categorical, lambda o: o.argmax(-1), of_classes, classes=True, kept=True),
    Case("classes on an axis", lambda: Categorical(-1), lambda o: o.argmax(-1), of_classes, classes=True, kept=True),
    Case("weighted", lambda: Categorical(1, list(WEIGHT), 2), lambda o: o.argmax(-1), weighted, classes=True, kept=True,
         ignored=2),
    Case("normal", lambda: Normal(0.7), lambda o: o, lambda o, y: stats.norm.logpdf(y, o, 0.7), kept=True),
    Case("normal, learned", Normal, lambda o: o, lambda o, y: stats.norm.logpdf(y, o, 1.0), kept=True),
    Case("counts", lambda: lambda o: Poisson(o.exp()), lambda o: (o > 0).long(),
         lambda o, y: stats.poisson.logpmf(y, np.exp(o))),
    Case("integers as numbers", lambda: lambda o: Laplace(o, 1.0), lambda o: o.round().long(),
         lambda o, y: stats.laplace.logpdf(y, o)),
    Case("yes or no", lambda: lambda o: Bernoulli(logits=o), lambda o: (o > 0).float(),
         lambda o, y: stats.bernoulli.logpmf(y, expit(o)), classes=True),
    Case("yes or no, each for itself", lambda: lambda o: Independent(Bernoulli(logits=o), 1), lambda o: (o > 0).float(),
         lambda o, y: stats.bernoulli.logpmf(y, expit(o)), classes=True),
    Case("one-hot", lambda: lambda o: OneHotCategorical(logits=o), lambda o: F.one_hot(o.argmax(1), C).float(),
         lambda o, y: of_classes(o, y.argmax(-1)), classes=True),
)  # fmt: skip
every_likelihood = pytest.mark.parametrize("case", LIKELIHOODS, ids=[case.name for case in LIKELIHOODS])


def network(case: Case) -> tuple[Quantized, Tensor, Tensor]:
    """One layer, inputs, and targets of which some differ from the most probable."""
    torch.manual_seed(5)
    x = torch.randn(N, 2)
    q = probq.quantize(nn.Linear(2, C), x, likelihood=case.make())
    y = case.target(q(x).detach())
    if y.dim() == 1:
        y[:3] = torch.tensor([1, 2, 2])
    else:
        y[0] = y[0].roll(1) if y[0].unique().numel() > 1 else 1 - y[0]
    return q, x, y


def by_scipy(case: Case, output: Tensor, y: Tensor) -> np.ndarray:
    """Log-probability of each example."""
    return case.density(output.detach().double().numpy(), y.numpy()).reshape(N, -1).sum(1)


@every_likelihood
def test_densities_are_those_of_scipy(case: Case) -> None:
    q, x, y = network(case)
    output = q(x).detach()
    law = q.law(output, y)
    np.testing.assert_allclose(law.log_prob(y).detach().reshape(N, -1).sum(1), by_scipy(case, output, y), rtol=1e-5)
    assert law.log_prob(law.sample()).isfinite().all()


@every_likelihood
def test_gradients_of_densities_by_finite_differences(case: Case) -> None:
    q, x, y = network(case)
    output = q(x).detach().double().requires_grad_()
    (found,) = torch.autograd.grad(q.law(output, y).log_prob(y).sum(), output)
    step = 1e-5
    for place in ((0, 0), (3, 1), (7, 2)):
        ends = []
        for sign in (1, -1):
            moved = output.detach().clone()
            moved[place] += sign * step
            ends.append(by_scipy(case, moved, y).sum())
        assert float(found[place]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-6)


def learns(case: Case) -> bool:
    """Whether a fit changes the likelihood itself."""
    made = case.make()
    return isinstance(made, nn.Module) and any(p.requires_grad for p in made.parameters())


@pytest.mark.parametrize("case", [case for case in LIKELIHOODS if not learns(case)], ids=lambda case: case.name)
def test_losses_of_a_fit_are_minus_the_mean_density(case: Case) -> None:
    q, x, y = network(case)
    history = probq.fit(q, [(x, y)] * 3, epochs=2, validation=[(x, y)], progress=False, seed=0)
    assert history.validation[-1]["loss"] == pytest.approx(-by_scipy(case, q(x), y).mean(), rel=1e-4)
    assert all(np.isfinite(step.loss) for step in history.steps)


@every_likelihood
def test_only_laws_of_classes_have_an_accuracy(case: Case) -> None:
    q, x, y = network(case)
    found = validate(q, Batches([(x, y)], CPU))
    assert ("accuracy" in found) == case.classes
    if case.classes:
        same = case.target(q(x).detach()) == y
        same = same.all(1) if case.name == "one-hot" else same
        same = same if case.ignored is None else same[y != case.ignored]
        assert found["accuracy"] == pytest.approx(float(same.double().mean())) != 1


@every_likelihood
def test_files_hold_it_or_say_that_they_cannot(case: Case, tmp_path: Path) -> None:
    q, x, y = network(case)
    q.save(tmp_path / "q")
    if not case.kept:
        with pytest.warns(UserWarning, match=r"the likelihood .* was not saved"):
            assert probq.load(tmp_path / "q", nn.Linear(2, C)).likelihood is None
        return
    again = probq.load(tmp_path / "q", nn.Linear(2, C))
    assert repr(again.likelihood) == repr(q.likelihood)
    output = q(x)
    assert torch.equal(again.law(output, y).log_prob(y), q.law(output, y).log_prob(y))
    frozen = [{name for name, p in each.named_parameters() if not p.requires_grad} for each in (q, again)]
    assert frozen[0] == frozen[1]
