"""The prior of three wells: probabilities by sums over levels, gradients by differences, files and fits."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import nn
from torch.distributions import kl_divergence

import probq
from probq import priors
from probq.codebooks import ladder, learned, levels, ternary, uniform
from probq.codebooks.rounding.nearest import BroadcastGrid
from probq.network.distributions.codes import Codes
from probq.priors import OnRung
from tests.exact_integers import assert_exact
from tests.prior_cases import BOOKS, X, Y

OWN_BOOKS = {**BOOKS, "uneven": levels([-3, 0.5, 2])}


def law_of(prior: priors.ThreeWells, book: Any, weights: int = 1, **own: torch.Tensor) -> Any:
    there = book if isinstance(book, torch.Tensor | BroadcastGrid) or not hasattr(book, "values") else book.levels()
    return prior.law(OnRung(torch.Size([weights]), there, torch.tensor(0.5), own))


def by_hand(values: Any, depth: float, steepness: float, power: float) -> np.ndarray:
    """Energies level by level, as three wells are described in words."""
    outermost = max(map(abs, values))
    weights = []
    for value in map(float, values):
        place = abs(value) / outermost if outermost else 0.0
        from_zero, from_end = place, 1 - place
        wall = steepness * min(from_zero, from_end) ** power
        weights.append(math.exp(depth - wall if from_zero < from_end else -wall))
    return np.array(weights) / sum(weights)


@pytest.mark.parametrize("book", OWN_BOOKS.values(), ids=OWN_BOOKS)
@pytest.mark.parametrize(("depth", "steepness", "power"), [(0.0, 1.0, 1.0), (1.3, 0.0, 1.0), (-4.0, 5.0, 2.0)])
def test_probabilities_by_a_sum_over_levels(book: Any, depth: float, steepness: float, power: float) -> None:
    values = book.levels()
    found = law_of(priors.ThreeWells(depth, steepness, power), book).log_probs(values.expand(1, -1)).double().exp()
    np.testing.assert_allclose(found[0], by_hand(values.tolist(), depth, steepness, power), rtol=1e-5)
    assert float(found.sum()) == pytest.approx(1, rel=1e-6)


def test_codebooks_may_differ_between_weights() -> None:
    mixed = BroadcastGrid(*(torch.tensor(f).reshape(3, 1) for f in ([-1, -1, -7], [2, 1, 1], [2, 3, 15])))
    law = priors.ThreeWells(0.7).law(OnRung(torch.Size([3, 2]), mixed, torch.ones(()), {}))
    found = law.log_probs(torch.tensor([[-1.0, 1.0], [0.0, 1.0], [3.0, -7.0]])).exp()
    wide = by_hand(range(-7, 8), 0.7, 1, 1)
    three = by_hand([-1, 0, 1], 0.7, 1, 1)
    np.testing.assert_allclose(found, [[0.5, 0.5], [three[1], three[2]], [wide[10], wide[0]]], rtol=1e-5)
    drawn = law.rsample((2000,))
    assert set(drawn[:, 0].unique().tolist()) == {-1.0, 1.0}
    assert drawn[:, 2].unique().numel() == 15
    counts = [(drawn[:, 1] == level).sum() for level in (-1, 0, 1)]
    assert stats.chisquare(counts, 4000 * three / three.sum()).pvalue > 1e-3


@pytest.mark.parametrize("book", [ternary(), uniform(3)], ids=["ternary", "3 bits"])
def test_the_divergence_by_enumeration_and_its_gradients_by_differences(book: Any) -> None:
    values = book.levels().double().numpy()

    def divergence(numbers: np.ndarray) -> float:
        """From locations and a depth, by every level of every weight."""
        total = 0.0
        prior = by_hand(values, numbers[-1], 1.0, 1.0)
        for location in numbers[:-1]:
            bounds = np.concatenate([[-np.inf], ((values[1:] + values[:-1]) / 2 - location / 0.5) / 0.4, [np.inf]])
            p = np.diff(stats.logistic.cdf(bounds))
            total += float((p * np.log(p / prior)).sum())
        return total

    numbers = np.array([0.2, -0.4, 0.1, 0.6])
    location = torch.tensor(numbers[:-1], requires_grad=True)
    depth = torch.tensor(numbers[-1], requires_grad=True)
    p = Codes(location, torch.tensor(0.5), book, torch.tensor(0.4), nearest=book.count)
    found = kl_divergence(p, law_of(priors.ThreeWells(), book, 3, logits=depth))
    assert float(found.detach()) == pytest.approx(divergence(numbers), rel=1e-5)
    grads = torch.autograd.grad(found, [location, depth])
    wanted = optimize.approx_fprime(numbers, divergence, 1e-6)
    np.testing.assert_allclose(torch.cat([grads[0], grads[1].reshape(1)]), wanted, rtol=1e-3, atol=1e-5)


def test_learned_levels_have_a_gradient_through_the_sum() -> None:
    book = learned([-2.0, 0.4, 2.0])
    table = book.levels().double().requires_grad_()
    prior = priors.ThreeWells(0.3, 2.0)
    assert torch.autograd.gradcheck(lambda t: law_of(prior, t).log_probs(t[1:2].detach()), [table])
    total = law_of(prior, table).log_probs(table.detach().expand(1, -1)).exp().sum()
    assert total.item() == pytest.approx(1)


def quantized(**options: Any) -> probq.Quantized:
    torch.manual_seed(3)
    plan = probq.Plan(ladder(1, ternary()), network_input=ladder(8), code_prior=priors.ThreeWells(), **options)
    return probq.quantize(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), X, plan).train()


@pytest.mark.parametrize("gates", ["tensor", "channel", "weight"])
def test_each_gate_is_told_what_every_rung_costs(gates: str) -> None:
    q = quantized(gates=gates, spread=0.4, estimator=probq.estimators.MeanGradient())
    weight, location = q.weights["0.weight"], q.location("0.weight").detach()
    weight.prior_logits.data.fill_(-0.8)
    onehot = weight.widths().rsample()
    onehot.retain_grad()
    weight.code_prior(weight.rung(onehot.detach().argmax(-1)), onehot, location).gate_term.backward()
    for k, rung in enumerate(weight.ladder.rungs):
        prior = by_hand(rung.levels().tolist(), -0.8, 1, 1)
        p = Codes(location, weight.scales().detach()[k], rung, weight.log_spread.exp(), nearest=2)
        found, log_probs = p.window()
        places = torch.searchsorted(rung.levels(), found)
        each = (log_probs.exp() * (log_probs - torch.from_numpy(prior).float().log()[places])).sum(-1)
        shape = {"tensor": (), "channel": (4, 1), "weight": (4, 3)}[gates]
        torch.testing.assert_close(onehot.grad[..., k], each.detach().sum_to_size(shape), rtol=1e-4, atol=1e-5)


def test_the_learned_depth_comes_to_the_share_of_zeros() -> None:
    """Where the codes' law stays, the bound is greatest at `P(0) = mean q(0)`: `e^d / (e^d + 2)` is that mean."""
    q = quantized(spread=0.4)
    weight = q.weights["0.weight"]
    location, rung = q.location("0.weight").detach(), weight.rung(torch.tensor(1))
    law = weight.law(location, rung)
    values, log_probs = law.window()
    share = float((log_probs.exp() * (values == 0)).sum().detach() / location.numel())
    optimizer = torch.optim.LBFGS([weight.prior_logits], max_iter=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = kl_divergence(weight.law(location, rung), weight.code_prior(rung, torch.tensor([0.0, 1.0]), location))
        loss.backward(inputs=[weight.prior_logits])
        return loss.detach()

    optimizer.step(closure)
    assert weight.prior_logits.item() == pytest.approx(math.log(2 * share / (1 - share)), abs=1e-3)


def test_a_fit_under_a_budget_learns_depths_and_ends_in_exact_integers(tmp_path: Path) -> None:
    q, budget = quantized(), probq.Budget(percent=3.5)
    probq.fit(q, [(X, Y)], budget, epochs=60, temperature=0.1, progress=False, seed=0)
    mode = q.mode(budget)
    assert mode.percent() <= 3.5
    assert all(mode.widths[name] in (1, 2) for name in q.weight_names)
    assert all(abs(w.prior_logits.item()) > 1e-3 for w in q.weights.values())
    q.save(tmp_path / "q.safetensors")
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    loaded = probq.load(tmp_path / "q.safetensors", net)
    for name, w in q.weights.items():
        assert torch.equal(loaded.weights[name].prior_logits, w.prior_logits)
        assert loaded.weights[name].code_prior_law == priors.ThreeWells()
    assert loaded.mode(budget).widths == mode.widths
    assert_exact(q.at(mode), X, tmp_path)
    assert list(probq.table(q).index)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: priors.ThreeWells(math.inf), "depth"),
        (lambda: priors.ThreeWells(steepness=-1.0), "steepness"),
        (lambda: priors.ThreeWells(power=0), "power"),
        (lambda: probq.Plan(ladder(1), code_prior=priors.ThreeWells()), "no effect on codebooks of 1 bits"),
        (lambda: priors.SpikeSlab(0.5, priors.ThreeWells()), "slab"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused(make: Any, part: str) -> None:
    with pytest.raises(probq.ProbqError, match=part):
        make()
