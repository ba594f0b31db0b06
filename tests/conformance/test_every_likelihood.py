"""What every likelihood must keep: densities by SciPy, gradients by finite differences, losses, accuracies, files.

A new likelihood is one line of `LIKELIHOODS`; a function of the user's own is one too, but no file holds it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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
from probq.likelihoods import Categorical, Normal, PerOutput, categorical
from probq.network.distributions.observation import Observation, as_targets
from probq.utils.batches import Batches
from probq.utils.structures.walk import map_leaves

CPU = torch.device("cpu")
N, C = 12, 3
WEIGHT = np.array([0.5, 2.0, 1.0])


class Case(NamedTuple):
    """A likelihood.

    Attributes:
        name: of the case.
        make: the likelihood.
        target: the most probable targets, of what the layer says.
        density: log-probability of the targets by SciPy, of the layer's outputs and targets as arrays; any shape, to be
            summed.
        classes: whether targets are classes, so that there is an accuracy.
        kept: whether a file holds it.
        ignored: a class that is not observed.
        outputs: what the network returns, of what its layer says.
    """

    name: str
    make: Callable[[], Callable[[Any], Distribution]]
    target: Callable[[Tensor], Any]
    density: Callable[[np.ndarray, Any], np.ndarray]
    classes: bool = False
    kept: bool = False
    ignored: int | None = None
    outputs: Callable[[Tensor], Any] = lambda o: o


class Net(nn.Module):
    """One layer, and what the network makes of it."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.layer, self.outputs = nn.Linear(2, C), case.outputs

    def forward(self, x: Tensor) -> Any:
        return self.outputs(self.layer(x))


def of_classes(output: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.take_along_axis(log_softmax(output, -1), y[..., None].astype(int), -1)


def weighted(output: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Class 2 is not observed."""
    return of_classes(output, y) * np.where(y == 2, 0, WEIGHT[y])[..., None]


def of_two(output: np.ndarray, y: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([of_classes(output, y["kind"]), stats.norm.logpdf(y["size"], -output, 0.7)], 1)


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
    Case("two outputs", lambda: PerOutput({"kind": categorical, "size": Normal(0.7)}),
         lambda o: {"kind": o.argmax(-1), "size": -o}, of_two, classes=True, kept=True,
         outputs=lambda o: {"kind": o, "size": -o, "other": o}),
    Case("the second of three outputs", lambda: PerOutput((None, Categorical(1, list(WEIGHT), 2), None)),
         lambda o: (None, o.argmax(-1), None), lambda o, y: weighted(o, y[1]), classes=True, kept=True, ignored=2,
         outputs=lambda o: (-o, o, [o])),
)  # fmt: skip
every_likelihood = pytest.mark.parametrize("case", LIKELIHOODS, ids=[case.name for case in LIKELIHOODS])


def network(case: Case) -> tuple[Quantized, Tensor, Any]:
    """A network of one layer, inputs, and targets of which some differ from the most probable."""
    torch.manual_seed(5)
    x = torch.randn(N, 2)
    q = probq.quantize(Net(case), x, likelihood=case.make())
    return q, x, map_leaves(changed, case.target(said(q, x)))


def changed(y: Tensor | None) -> Tensor | None:
    """Targets of which some are others."""
    if y is None:
        return None
    y = y.clone()
    if y.dim() == 1:
        y[:3] = torch.tensor([1, 2, 2])
    else:
        y[0] = y[0].roll(1) if y[0].unique().numel() > 1 else 1 - y[0]
    return y


def said(q: Quantized, x: Tensor) -> Tensor:
    """What the layer says."""
    kept: list[Tensor] = []
    with q.net.layer.register_forward_hook(lambda _, __, output: kept.append(output.detach())):  # type: ignore[union-attr, operator]
        q(x)
    return kept[0]


def by_scipy(case: Case, output: Tensor, y: Any) -> np.ndarray:
    """Log-probability of each example."""
    given = map_leaves(lambda leaf: None if leaf is None else leaf.numpy(), y)
    return case.density(output.detach().double().numpy(), given).reshape(N, -1).sum(1)


def log_prob(q: Quantized, case: Case, output: Tensor, y: Any) -> Tensor:
    """Log-probability of each example by the likelihood."""
    return Observation(q.law(case.outputs(output), as_targets(y))).log_prob(as_targets(y))


@every_likelihood
def test_densities_are_those_of_scipy(case: Case) -> None:
    q, x, y = network(case)
    output = said(q, x)
    np.testing.assert_allclose(log_prob(q, case, output, y).detach(), by_scipy(case, output, y), rtol=1e-5)
    law = Observation(q.law(case.outputs(output), as_targets(y)))
    assert law.log_prob(law.sample()).isfinite().all()


@every_likelihood
def test_gradients_of_densities_by_finite_differences(case: Case) -> None:
    q, x, y = network(case)
    output = said(q, x).double().requires_grad_()
    (found,) = torch.autograd.grad(log_prob(q, case, output, y).sum(), output)
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
    assert history.validation[-1]["loss"] == pytest.approx(-by_scipy(case, said(q, x), y).mean(), rel=1e-4)
    assert all(np.isfinite(step.loss) for step in history.steps)


@every_likelihood
def test_only_laws_of_classes_have_an_accuracy(case: Case) -> None:
    q, x, y = network(case)
    found = validate(q, Batches([(x, y)], CPU))
    assert ("accuracy" in found) == case.classes
    if case.classes:
        likely = case.target(said(q, x))
        if not isinstance(y, Tensor):
            y, likely = (each["kind"] if isinstance(each, dict) else each[1] for each in (y, likely))
        same = likely == y
        same = same.all(1) if case.name == "one-hot" else same
        same = same if case.ignored is None else same[y != case.ignored]
        assert found["accuracy"] == pytest.approx(float(same.double().mean())) != 1


@every_likelihood
def test_files_hold_it_or_say_that_they_cannot(case: Case, tmp_path: Path) -> None:
    q, x, y = network(case)
    q.save(tmp_path / "q")
    if not case.kept:
        with pytest.warns(UserWarning, match=r"the likelihood .* was not saved"):
            assert probq.load(tmp_path / "q", Net(case)).likelihood is None
        return
    again, output = probq.load(tmp_path / "q", Net(case)), said(q, x)
    assert repr(again.likelihood) == repr(q.likelihood)
    assert torch.equal(log_prob(again, case, output, y), log_prob(q, case, output, y))
    frozen = [{name for name, p in each.named_parameters() if not p.requires_grad} for each in (q, again)]
    assert frozen[0] == frozen[1]
