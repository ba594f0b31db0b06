"""Estimators of code posteriors: the gradient that each says it has, by hand, and what is refused.

What all of them keep is in `tests/conformance`.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from drawn_gradients import gradients, law
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from scipy import stats
from torch import Tensor, nn

import probq
from probq import estimators
from probq.codebooks import ladder, ternary, uniform
from probq.codebooks.rounding.nearest import BroadcastGrid
from probq.decisions.widths import fix_widths
from probq.estimators.estimator import on_weight
from probq.network.distributions.categorical_codes import CategoricalCodes
from probq.network.distributions.codes import Codes
from probq.network.distributions.widths import Widths
from probq.testing import enumerable

X, Y = torch.tensor([[0.3, 0.9], [0.7, 0.2], [-0.4, 0.5]]), torch.tensor([0, 1, 1])


def name_of(estimator: Any) -> str:
    return type(estimator).__name__


def test_second_order_gradients_of_two_levels_are_half_the_improbability_of_the_draw() -> None:
    """`(b - a) / 2 (1 - P(draw)) dz` for a logit `z`, by hand, in the pass that fuses it with the draw."""
    location = torch.linspace(-0.9, 0.9, 50, requires_grad=True)
    codes = Codes(location, torch.tensor(0.5), uniform(3), torch.tensor(0.4))
    drawn = estimators.SecondOrder().draw(codes)
    (found,) = torch.autograd.grad(drawn.sum(), location)
    u = location.detach() / 0.5
    up = torch.special.expit((u - u.floor() - 0.5) / 0.4)
    probability = torch.where(drawn > u, up, 1 - up)
    torch.testing.assert_close(found, (1 - probability) / 2 / (0.4 * 0.5))
    assert set((drawn.detach() - u.floor()).tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("nearest", [2, 3], ids=["fused", "general"])
@pytest.mark.parametrize("each", [False, True], ids=["grid", "grids"])
def test_straight_through_moves_every_weight_in_range(nearest: int, each: bool) -> None:
    """`dw = g du` in the levels' range and 0 outside, by hand; the spread's gradient is that of `SecondOrder`."""
    location = torch.tensor([-2.0, -0.76, -0.74, -0.1, 0.3, 0.74, 0.76, 2.0], requires_grad=True)
    scale, spread = torch.tensor(0.5, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    grids = BroadcastGrid(torch.full((8,), -1.0), torch.ones(8), torch.full((8,), 3.0))
    codes = Codes(location, scale, grids if each else ternary(), spread, nearest)
    g = torch.arange(1.0, 9.0)
    torch.manual_seed(3)
    drawn = estimators.StraightThrough().draw(codes)
    found = torch.autograd.grad(drawn @ g, [location, scale, spread])
    inside = (location.detach().abs() < 0.75) * g
    torch.testing.assert_close(found[0], inside / 0.5)
    torch.testing.assert_close(found[1], -(inside * location.detach()).sum() / 0.25)
    torch.manual_seed(3)
    second = estimators.SecondOrder().draw(codes)
    torch.testing.assert_close(found[2], torch.autograd.grad(second @ g, spread)[0])
    assert torch.equal(drawn, second)


def test_codes_explore_in_the_search_of_a_cold_fit_where_the_plan_names_no_estimator() -> None:
    def of_location(temperature: float, estimator: Any = None, decided: bool = False) -> Tensor:
        torch.manual_seed(2)
        one = nn.Linear(2, 2)
        q = probq.quantize(one, X, probq.Plan(weight=ladder(2), estimator=estimator)).train()
        q.likelihood, q.temperature = probq.likelihoods.categorical, temperature
        if decided:
            fix_widths(q, q.mode().widths)
        torch.manual_seed(4)
        loss = TraceMeanField_ELBO().differentiable_loss(q.model, q.guide, X, Y)
        (found,) = torch.autograd.grad(loss, q.net.get_parameter("weight"))
        return found

    assert torch.equal(of_location(1.0), of_location(1.0, estimators.SecondOrder()))
    assert torch.equal(of_location(0.1), of_location(0.1, estimators.StraightThrough()))
    assert not torch.equal(of_location(0.1), of_location(0.1, estimators.SecondOrder()))
    assert torch.equal(of_location(0.1, decided=True), of_location(0.1, estimators.SecondOrder(), decided=True))


def test_the_gradient_of_the_mean_leaves_out_what_the_variance_costs() -> None:
    """The known bias, in its size: `1/2 L'' dVar` of a quadratic loss."""
    small = list(enumerable())[1]
    mean, error, exact = gradients(small, estimators.MeanGradient(), 250)
    q, x = small.quantized()
    ((name, weight),) = q.weights.items()
    with torch.no_grad():
        weight.logits.fill_(0.3)
    rung = weight.rung(torch.tensor(1))
    variance = weight.law(q.location(name), rung).variance * rung.scale.detach() ** 2
    price = (weight.probs()[1].detach() * x.square().sum(0) / 0.7**2 * variance / 2).sum()
    left_out = torch.autograd.grad(price, weight.code_logits["1"])[0].reshape(-1)
    codes = slice(len(exact) - len(left_out), None)
    assert ((exact - mean)[codes] - left_out).abs().max() < 5 * float(error[codes].max())
    assert float(left_out.norm()) > 3 * float(error[codes].norm())


@pytest.mark.parametrize("estimator", [estimators.LocalReparametrization(), estimators.Flipout()], ids=name_of)
def test_noisy_layers_have_the_moments_of_drawn_weights(estimator: Any) -> None:
    torch.manual_seed(1)
    conv = nn.Conv2d(2, 3, 2, stride=2, padding=1, bias=True)
    p = law(conv.weight.numel())
    p.location = p.location.detach().reshape(conv.weight.shape)
    p.scale = torch.full((3, 1, 1, 1), 0.5)
    x, outs = torch.randn(1, 2, 4, 4), []
    for _ in range(1500):
        noise = estimator.noise(p, estimator.draw(p), lambda value, of_rung: value)
        outs.append(noise(conv, x))
    out = torch.stack(outs)
    variance = on_weight(conv, p.variance * 0.25, x.square())
    wanted = torch.func.functional_call(conv, {"weight": p.variance * 0.25, "bias": torch.zeros(3)}, (x.square(),))
    torch.testing.assert_close(variance, wanted)
    assert (out.mean(0).abs() < 5 * (variance / 1500).sqrt() + 1e-6).all()
    torch.testing.assert_close(out.var(0), variance, rtol=0.35, atol=1e-3)


def test_flipout_gives_every_example_signs_of_its_own() -> None:
    p = law(6)
    p.location = p.location.detach().reshape(2, 3)
    estimator, layer = estimators.Flipout(), nn.Linear(3, 2)
    rows = torch.ones(64, 3)
    out = estimator.noise(p, estimator.draw(p), lambda value, of_rung: value)(layer, rows)
    assert len({tuple(row) for row in out.detach().tolist()}) > 8


def test_mode_forward_is_the_mode_with_the_gradient_of_the_mean() -> None:
    p = law()
    value = estimators.ModeForward().draw(p)
    assert torch.equal(value, p.mode)
    (found,) = torch.autograd.grad(value.sum(), p.location, retain_graph=True)
    (wanted,) = torch.autograd.grad(p.mean.sum(), p.location)
    assert torch.equal(found, wanted)


def test_gumbel_gradients_are_those_of_the_relaxed_draw() -> None:
    logits = torch.tensor([[0.1, 0.5, -0.3]], dtype=torch.float64, requires_grad=True)
    p = CategoricalCodes(logits, torch.tensor(1.0).double(), torch.tensor([-1.0, 0.5, 2.0]).double())
    torch.manual_seed(5)
    (found,) = torch.autograd.grad(estimators.Gumbel(0.7).draw(p).sum(), logits)
    torch.manual_seed(5)
    noise = -torch.log(-torch.log(torch.rand(1, 3, dtype=torch.float64).clamp(1e-7, 1 - 1e-7)))
    weights = torch.softmax((torch.log_softmax(logits, -1) + noise) / 0.7, -1)
    (wanted,) = torch.autograd.grad((weights * p.all_levels()).sum(), logits)
    torch.testing.assert_close(found, wanted)


def test_second_order_widths_are_right_for_a_quadratic_function_of_the_rung() -> None:
    logits = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)
    values = torch.tensor([0.0, 0.7, 2.0], dtype=torch.float64)
    rungs = estimators.SecondOrder().widths(logits.expand(4000, 2))
    drawn = rungs.rsample()
    assert stats.chisquare(drawn.detach().sum(0), 4000 * Widths(logits).probs.detach()).pvalue > 1e-3
    w = drawn @ values
    (each,) = torch.autograd.grad((w - 1.5).square().sum(), rungs.logits)
    (exact,) = torch.autograd.grad((Widths(logits).probs * (values - 1.5).square()).sum(), logits)
    assert ((each.mean(0) - exact).abs() < 4 * each.std(0) / math.sqrt(4000)).all()


def net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))


def test_rounded_codes_take_the_estimator_that_earlier_files_name() -> None:
    assert probq.Plan(codes=1, estimator=estimators.SecondOrder()).codes == 1


def test_evaluation_draws_plain_levels() -> None:
    """In training mode every draw of this estimator is the mode; in evaluation mode it is not."""
    plan = probq.Plan(weight=ladder(2), estimator=estimators.ModeForward(), spread=2.0)
    q = probq.quantize(net(), X, plan)

    def drawn() -> Tensor:
        return poutine.trace(q.guide).get_trace(X).nodes["0.weight.code"]["value"].detach()

    q.train()
    modes = [drawn() for _ in range(6)]
    assert all(torch.equal(value, modes[0]) for value in modes)
    q.eval()
    assert not all(torch.equal(drawn(), modes[0]) for _ in range(6))


def test_free_codes_begin_at_the_trained_weight() -> None:
    q = probq.quantize(net(), X, probq.Plan(weight=ladder(3), free_codes=True))
    plain = probq.quantize(net(), X, probq.Plan(weight=ladder(3)))
    for name in q.weights:
        np.testing.assert_array_equal(q.mode().codes[name], plain.mode().codes[name])


NORMED = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)).eval()


class Twice(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: estimators.Gumbel(0.0), "temperature"),
        (lambda: probq.Plan(estimator="gumbel"), "probq.estimators"),  # type: ignore[arg-type]
        (lambda: probq.Plan(codes=1, estimator=estimators.Flipout()), "codes=2"),
        (lambda: probq.Plan(free_codes=True, gates="channel"), 'gates="tensor"'),
        (lambda: probq.Plan(free_codes=True, weight=ladder(uniform(8))), "at most 16 levels"),
        (lambda: probq.quantize(NORMED, X, probq.Plan(weight=ladder(2), free_codes=True)), "free_codes=False"),
        (lambda: probq.quantize(Twice(), X, probq.Plan(estimator=estimators.Flipout())), "shared by several"),
        (
            lambda: probq.quantize(
                nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2)),
                torch.tensor([[1], [2]]),
                probq.Plan(estimator=estimators.LocalReparametrization()),
            ),
            "layer of products",
        ),
    ],
)
def test_what_cannot_be_is_refused(make: Any, part: str) -> None:
    with pytest.raises(probq.ProbqError, match=part):
        make()
