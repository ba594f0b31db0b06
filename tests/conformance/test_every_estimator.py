"""What every estimator must keep: draws by its law, gradients that lead where the enumerated ones do, files, integers.

A new estimator is one line of `ESTIMATORS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from drawn_gradients import gradients
from pyro.infer import TraceMeanField_ELBO
from scipy import stats
from torch import nn

import probq
from probq import estimators
from probq.codebooks import binary, ladder, ternary
from probq.codebooks.rounding.nearest import BroadcastGrid
from probq.estimators import Estimator
from probq.network.distributions.codes import Codes
from probq.testing import enumerable, enumerate_joint, fit_law, law_parameters, posterior_of


class Case(NamedTuple):
    """An estimator.

    Attributes:
        estimator: to be tried.
        unbiased: whether its gradients are exact on average where the loss is quadratic.
        drawn: whether levels are drawn from the law; otherwise they are its mode.
    """

    estimator: Estimator
    unbiased: bool = False
    drawn: bool = True


ESTIMATORS = (
    Case(estimators.MeanGradient()),
    Case(estimators.ModeForward(), drawn=False),
    Case(estimators.Gumbel(0.3)),
    Case(estimators.SecondOrder(), unbiased=True),
    Case(estimators.StraightThrough()),
    Case(estimators.LocalReparametrization()),
    Case(estimators.Flipout()),
)
ALL = [case.estimator for case in ESTIMATORS]
LINEAR, _, LOGISTIC, *_ = enumerable()
X, Y = torch.tensor([[0.3, 0.9], [0.7, 0.2], [-0.4, 0.5]]), torch.tensor([0, 1, 1])


def name_of(estimator: Any) -> str:
    return type(estimator).__name__


every_estimator = pytest.mark.parametrize("estimator", ALL, ids=name_of)


@every_estimator
def test_an_estimator_is_a_value(estimator: Estimator) -> None:
    """Plans compare it, and use it as a key."""
    same = type(estimator)(**vars(estimator))
    assert same == estimator
    assert hash(same) == hash(estimator)
    assert sum(other == estimator for other in ALL) == 1
    assert probq.Plan(estimator=estimator).estimator is estimator


# Draws


@pytest.mark.parametrize("estimator", [case.estimator for case in ESTIMATORS if case.drawn], ids=name_of)
def test_draws_fit_the_law(estimator: Any) -> None:
    p = Codes(torch.full((3000,), 0.3), torch.tensor(1.0), ternary(), torch.tensor(0.4), nearest=3)
    drawn = estimator.draw(p).detach()
    counts = [int((drawn == level).sum()) for level in (-1, 0, 1)]
    wanted = p.window()[1][0].double().exp().numpy()
    assert stats.chisquare(counts, 3000 * wanted / wanted.sum()).pvalue > 1e-3


# Gradients


@every_estimator
@pytest.mark.parametrize("nearest", [2, 3])
@pytest.mark.parametrize("width", [0.4, 1e-3])
def test_gradients_are_numbers_where_levels_have_no_probability(estimator: Any, nearest: int, width: float) -> None:
    """Levels that a narrow rung lacks, and levels so improbable that their probability is 0 in float32."""
    location = torch.linspace(-1.2, 1.1, 6, requires_grad=True)
    scale, spread = torch.tensor(1.0), torch.tensor(width)
    counts = torch.tensor([1.0, 2.0, 3.0]).repeat(2)
    each = BroadcastGrid((1 - counts) / 2, torch.ones(6), counts)
    laws = [Codes(location, scale, levels, spread, nearest) for levels in (torch.zeros(1), binary(), each)]
    for codes in laws:
        total = codes.entropies().sum() + estimator.draw(codes).sum() + codes.mean.sum()
        (found,) = torch.autograd.grad(total + location.sum(), location)
        assert found.isfinite().all()


@every_estimator
@pytest.mark.parametrize("nearest", [2, 3])
def test_a_draw_leaves_the_divergence_its_gradient(estimator: Estimator, nearest: int) -> None:
    """The pass that fuses it with the draw included."""

    def of_law(drawn: bool) -> tuple[torch.Tensor, ...]:
        location = torch.linspace(-1.2, 1.1, 6, requires_grad=True)
        scale, spread = torch.tensor(0.9, requires_grad=True), torch.tensor(0.4, requires_grad=True)
        codes = Codes(location, scale, ternary(), spread, nearest)
        if drawn:
            estimator.draw(codes)
        return torch.autograd.grad(codes.entropy(), [location, scale, spread])

    torch.testing.assert_close(of_law(True), of_law(False))


@every_estimator
@pytest.mark.parametrize("codes", [2, 3])
def test_every_parameter_of_the_law_is_told(estimator: Estimator, codes: int) -> None:
    """By the likelihood alone, at a temperature that takes the divergence away."""
    torch.manual_seed(2)
    plan = probq.Plan(weight=ladder(2, 3), codes=codes, spread=0.5, estimator=estimator)
    q = probq.quantize(nn.Linear(2, 2, bias=False), X, plan).train()
    q.likelihood, q.temperature = probq.likelihoods.categorical, 1e-9
    quantizer = q.weights[".weight"]
    parameters = [q.net.get_parameter("weight"), quantizer.logits, quantizer.log_spread]
    seen = [torch.zeros_like(p) for p in parameters]
    for _ in range(10):
        loss = TraceMeanField_ELBO().differentiable_loss(q.model, q.guide, X, Y)
        for total, grad in zip(seen, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            total += 0 if grad is None else grad.abs()
    assert all((total > 1e-5).all() for total in seen)


@pytest.mark.parametrize("case", [case for case in ESTIMATORS if case.unbiased], ids=lambda c: name_of(c.estimator))
def test_unbiased_gradients_are_the_enumerated_ones_on_average(case: Case) -> None:
    mean, error, exact = gradients(LINEAR, case.estimator, 300)
    assert float(exact.norm()) > 5 * float(error.norm())
    assert ((mean - exact).abs() < 4 * error).all()


@every_estimator
def test_gradients_lead_where_the_enumerated_ones_do(estimator: Estimator) -> None:
    """Of the gates and of the codes, each by the cosine of the angle between them."""
    mean, _, exact = gradients(LOGISTIC, estimator, 150)
    sizes = [p.numel() for p in law_parameters(LOGISTIC.quantized(estimator=estimator)[0]).values()]
    for found, wanted in zip(mean.split(sizes), exact.split(sizes), strict=True):
        assert float(torch.cosine_similarity(found, wanted, dim=0)) > 0.5


@every_estimator
def test_fits_raise_the_enumerated_bound(estimator: Estimator) -> None:
    q, x = LOGISTIC.quantized(estimator=estimator)
    y = LOGISTIC.targets(q, x)
    before = float(enumerate_joint(q, x, y).elbo(*posterior_of(q)).detach())
    torch.manual_seed(1)
    elbo = TraceMeanField_ELBO()
    fit_law(q, lambda: elbo.differentiable_loss(q.model, q.guide, x, y), steps=80)
    assert float(enumerate_joint(q, x, y).elbo(*posterior_of(q)).detach()) > before + 0.05


# Fits


def net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))


@pytest.mark.filterwarnings("ignore:at 0 bits of")
@pytest.mark.parametrize("free", [False, True], ids=["logistic", "free"])
@pytest.mark.parametrize("estimator", [*ALL, None], ids=name_of)
def test_every_estimator_fits_decides_and_is_saved(estimator: Any, free: bool, tmp_path: Path) -> None:
    plan = probq.Plan(weight=ladder(0, binary(), 3), estimator=estimator, free_codes=free)
    q = probq.quantize(net(), X, plan)
    before = {n: p.detach().clone() for n, p in q.named_parameters() if "logits" in n and p.numel()}
    probq.fit(q, [(X, Y)] * 4, probq.Budget(percent=3.0), epochs=2, progress=False, seed=0)
    moved = {n.rsplit(".", 1)[-1] for n, p in q.named_parameters() if n in before and not torch.equal(p, before[n])}
    assert "logits" in moved
    q.save(tmp_path / "q.safetensors")
    loaded = probq.load(tmp_path / "q.safetensors", net())
    assert all(w.chosen_estimator == estimator and w.free_codes == free for w in loaded.weights.values())
    assert torch.equal(loaded(X), q(X))
    a = q.sample(1, seed=1)[0]
    model = probq.lower(q, a)
    np.testing.assert_array_equal(model(X.numpy()) * model.output_scale, q.at(a)(X).detach().numpy())
