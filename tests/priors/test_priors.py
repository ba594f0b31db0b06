"""Priors over codes and widths, against SciPy, sums over levels, and the file of a posterior."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from scipy import stats
from torch import nn
from torch.distributions import kl_divergence

import probq
from probq import priors
from probq.codebooks import binary, ladder, levels, pruned, ternary, uniform
from probq.network.distributions.codes import Codes
from probq.network.distributions.widths import Widths
from probq.network.quantizers.base import Rung
from probq.priors import PriorCodes
from probq.testing import enumerate_joint, posterior_of

X = torch.tensor([[0.3, 0.9, -0.2], [0.7, 0.2, 0.4], [0.1, 0.5, -1.0], [1.0, -0.3, 0.2]])
Y = torch.tensor([0, 1, 1, 0])
LAWS = {"normal": (priors.Normal, stats.norm()), "laplace": (priors.Laplace, stats.laplace(scale=math.sqrt(0.5)))}
BOOKS = {"ternary": ternary(), "4 bits": uniform(4), "unsigned": uniform(3, signed=False), "one": pruned()}


def law_of(prior: priors.RoundedPrior, book: Any, scale: float, sd: float, centre: torch.Tensor) -> PriorCodes:
    table = book if not hasattr(book, "values") else book.levels()
    return PriorCodes(prior, centre.shape, table, torch.tensor(scale), torch.tensor(sd), centre)


def all_levels(book: Any, weights: int) -> torch.Tensor:
    return book.levels().expand(weights, -1)


@pytest.mark.parametrize("kind", LAWS)
@pytest.mark.parametrize("book", [*BOOKS.values(), levels([-2.5, -1.0, 0.0, 0.25, 3.0])], ids=[*BOOKS, "uneven"])
def test_probabilities_are_those_of_a_rounded_real_number(kind: str, book: Any) -> None:
    make, law = LAWS[kind]
    centre, scale, sd = torch.tensor([0.0, 0.3, -1.1]), 0.5, 0.7
    found = law_of(make(sd, centred=True), book, scale, sd, centre).log_probs(all_levels(book, 3)).double().exp()
    values = book.levels().double().numpy()
    bounds = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2 * scale, [np.inf]])
    wanted = np.diff(law.cdf((bounds - centre.double().numpy()[:, None]) / sd), axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)


def test_tails_are_exact_where_probabilities_vanish() -> None:
    """40 standard deviations out, in both tails; SciPy has survival functions for it."""
    law = law_of(priors.Normal(0.05), uniform(5), 0.5, 0.05, torch.zeros(1))
    found = law.log_probs(torch.tensor([[5.0, -5.0]])).double().numpy()
    wanted = stats.norm.logsf(45.0) + math.log1p(-math.exp(stats.norm.logsf(55.0) - stats.norm.logsf(45.0)))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_spike_adds_to_the_zero_level_only() -> None:
    slab, prior = priors.Laplace(0.6), priors.SpikeSlab(0.7, priors.Laplace(0.6))
    without = law_of(slab, ternary(), 0.5, 0.6, torch.zeros(1)).log_probs(all_levels(ternary(), 1)).exp()
    mixed = law_of(prior, ternary(), 0.5, 0.6, torch.zeros(1)).log_probs(all_levels(ternary(), 1)).exp()
    torch.testing.assert_close(mixed, 0.3 * without + 0.7 * torch.tensor([[0.0, 1.0, 0.0]]))
    no_zero = law_of(prior, binary(), 0.5, 0.6, torch.zeros(1)).log_probs(all_levels(binary(), 1)).exp()
    torch.testing.assert_close(no_zero, torch.tensor([[0.5, 0.5]]))


@pytest.mark.parametrize("prior", [priors.Normal(0.6), priors.Laplace(0.6), priors.SpikeSlab(0.4, priors.Normal(0.6))])
def test_draws_fit_the_probabilities(prior: priors.RoundedPrior) -> None:
    law = law_of(prior, ternary(), 0.5, 0.6, torch.zeros(40))
    drawn = law.rsample((100,)).reshape(-1).numpy()
    counts = [(drawn == level).sum() for level in (-1, 0, 1)]
    wanted = law.log_probs(all_levels(ternary(), 40))[0].double().exp().numpy()
    assert stats.chisquare(counts, 4000 * wanted / wanted.sum()).pvalue > 1e-3


def test_divergence_and_its_gradients_by_autograd_on_the_definition() -> None:
    location = torch.tensor([0.2, -0.4, 1.3], requires_grad=True)
    log_sd = torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.5)
    p = Codes(location, scale, uniform(3), torch.tensor(0.4), nearest=3)
    q = PriorCodes(priors.Normal(), location.shape, uniform(3), scale, log_sd.exp(), torch.zeros(()))
    found = kl_divergence(p, q)
    grads = torch.autograd.grad(found, [location, log_sd])
    values, log_probs = p.window()
    cells = torch.distributions.Normal(0.0, log_sd.exp())
    upper = torch.where(values >= 3, torch.inf, (values.double() + 0.5) * 0.5)
    lower = torch.where(values <= -3, -torch.inf, (values.double() - 0.5) * 0.5)
    mass = torch.where(upper.isinf(), 1.0, cells.cdf(upper.clamp(-9, 9))) - torch.where(
        lower.isinf(), 0.0, cells.cdf(lower.clamp(-9, 9))
    )
    wanted = (log_probs.exp() * (log_probs - mass.log())).sum()
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-5, atol=1e-6)
    for a, b in zip(grads, torch.autograd.grad(wanted, [location, log_sd]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_divergence_has_a_gradient_where_levels_are_too_far_to_have_a_probability() -> None:
    location = torch.tensor([0.2, -0.4, 1.3], requires_grad=True)
    log_sd = torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)
    scale, found = torch.tensor(0.05), []
    for m in (7, 255):
        law = Codes(location, scale, uniform(8), torch.tensor(0.1), nearest=m)
        prior = PriorCodes(priors.Normal(), location.shape, uniform(8), scale, log_sd.exp(), torch.zeros(()))
        found.append(torch.autograd.grad(kl_divergence(law, prior), [location, log_sd]))
    assert all(gradient.isfinite().all() for gradient in found[1])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_width_priors_by_hand() -> None:
    rungs = ladder(0, 2, 4)
    geometric = Widths(priors.Geometric(0.5).logits(rungs)).probs
    np.testing.assert_allclose(geometric, np.array([1, 1 / 4, 1 / 16]) / (21 / 16), rtol=1e-12)
    energy = Widths(priors.Energy([3.0, 1.0, 0.5], beta=2).logits(rungs)).probs
    np.testing.assert_allclose(energy, np.exp([-6, -2, -1]) / np.exp([-6, -2, -1]).sum(), rtol=1e-12)
    flat = Widths(priors.Geometric(1.0).logits(rungs)).probs
    np.testing.assert_allclose(flat, 1 / 3, rtol=1e-12)


def quantized(**options: Any) -> probq.Quantized:
    torch.manual_seed(3)
    plan = probq.Plan(weight=ladder(0, 2), network_input=ladder(8), scales="tensor", spread=0.5, **options)
    return probq.quantize(nn.Sequential(nn.Linear(3, 2, bias=False)), X, plan).train()


PLANS: dict[str, dict[str, Any]] = {
    "normal": {"code_prior": priors.Normal(), "width_prior": priors.Geometric(0.3)},
    "centred": {"code_prior": priors.Laplace(0.4, centred=True), "width_prior": priors.Energy((1.0, 3.0), 0.5)},
    "spike": {"code_prior": priors.SpikeSlab(0.3, priors.Normal()), "free_codes": True},
    "wells": {"code_prior": priors.ThreeWells(), "width_prior": priors.Geometric(0.3)},
}


@pytest.mark.parametrize("options", PLANS.values(), ids=PLANS)
def test_the_program_has_the_enumerated_bound(options: dict[str, Any]) -> None:
    q = quantized(**options)
    q.weights["0.weight"].logits.data.fill_(1.0)  # 150 draws meet both rungs often
    exact = float(enumerate_joint(q, X, Y).elbo(*posterior_of(q)).detach())
    elbo = TraceMeanField_ELBO()
    draws = np.array([-elbo.loss(q.model, q.guide, X, Y) for _ in range(150)])
    assert abs(draws.mean() - exact) < 4 * draws.std() / math.sqrt(150) + 1e-4


@pytest.mark.parametrize("sd", [0.05, None])
def test_priors_follow_their_weight_into_a_folded_normalisation(sd: float | None) -> None:
    """A normalisation multiplies the real weight; by SciPy on centre and deviation multiplied with the same number."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2)).eval()
    net[1].weight.data = torch.tensor([8.0, -5.0, 0.1])
    plan = probq.Plan(ladder(4), profile="shift", code_prior=priors.Normal(sd, centred=True))
    q = probq.quantize(net, torch.randn(4, 1, 6, 6), plan)
    weight = net[0].weight.detach().double()
    deviation = weight.std(correction=0) if sd is None else sd
    levels = q.weights["0.weight"].ladder.rungs[0].levels().double()
    for folded in (False, True):
        q.folded = folded
        gain = q.fold("0.weight")[0].gain.detach().double().reshape(3, 1, 1, 1) if folded else torch.ones(3, 1, 1, 1)
        rung = q.rung("0.weight", torch.ones(1))
        prior = q.code_prior("0.weight", rung, torch.ones(1))
        law = stats.norm((weight * gain).numpy(), (deviation * gain.abs()).numpy() + 0 * weight.numpy())
        scale = rung.scale.detach().double().numpy()
        bounds = [-np.inf, *(levels[:-1] + 0.5).tolist(), np.inf]
        cumulative = np.stack([law.cdf(b * scale) for b in bounds], -1)
        found = prior.log_probs(levels.float().expand(*weight.shape, -1)).exp().detach().numpy()
        np.testing.assert_allclose(found, np.diff(cumulative), atol=2e-6)


@pytest.mark.parametrize("gates", ["tensor", "channel", "weight"])
def test_the_divergence_tells_each_gate_what_every_rung_costs(gates: str) -> None:
    q = quantized(gates=gates, estimator=probq.estimators.MeanGradient(), code_prior=priors.Normal(0.3, centred=True))
    weight, location = q.weights["0.weight"], q.location("0.weight").detach()
    onehot = weight.widths().rsample()
    onehot.retain_grad()
    weight.code_prior(weight.rung(onehot.detach().argmax(-1)), onehot, location).gate_term.backward()
    for k, rung in enumerate(weight.ladder.rungs):
        scale = weight.scales().detach()[k]
        p = Codes(location, scale, rung, weight.log_spread.exp())
        prior = PriorCodes(priors.Normal(0.3), location.shape, rung, scale, torch.tensor(0.3), location)
        if gates == "weight":
            wanted = prior.divergences(p)
        else:
            wanted = prior.divergences(p).sum() if gates == "tensor" else prior.divergences(p).sum(1, keepdim=True)
        torch.testing.assert_close(onehot.grad[..., k], wanted.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:at 0 bits of 0.weight")  # the one layer may be pruned; what is saved matters here
@pytest.mark.parametrize("options", PLANS.values(), ids=PLANS)
def test_priors_are_saved_with_the_posterior(options: dict[str, Any], tmp_path: Path) -> None:
    q = quantized(**options)
    probq.fit(q, [(X, Y)], epochs=4, progress=False, seed=0)
    q.save(tmp_path / "q.safetensors")
    loaded = probq.load(tmp_path / "q.safetensors", nn.Sequential(nn.Linear(3, 2, bias=False)))
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in q.state_dict().items())
    there, here = loaded.weights["0.weight"], q.weights["0.weight"]
    assert (there.code_prior_law, there.width_prior) == (here.code_prior_law, here.width_prior)
    bounds = [enumerate_joint(p, X, Y).elbo(*posterior_of(p)) for p in (q, loaded)]
    assert torch.equal(*bounds)


def test_the_default_prior_is_the_uniform_one() -> None:
    q = quantized()
    weight = q.weights["0.weight"]
    rung = Rung(weight.levels(1), weight.scales()[1], 1)
    prior = weight.code_prior(rung, torch.tensor([0.0, 1.0]), q.location("0.weight"))
    assert float(prior.log_prob(torch.zeros(2, 3))) == pytest.approx(-6 * math.log(rung.levels.count))


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: priors.Normal(0.0), "sd"),
        (lambda: priors.SpikeSlab(1.0), "spike"),
        (lambda: priors.SpikeSlab(0.5, priors.SpikeSlab()), "slab"),
        (lambda: priors.Geometric(-1.0), "ratio"),
        (lambda: priors.Energy([]), "energies"),
        (lambda: priors.Energy([1.0], beta=-1), "beta"),
        (lambda: quantized(width_prior=priors.Energy([1.0, 2.0, 3.0])), "one energy for each rung"),
        (lambda: probq.Plan(code_prior="normal"), "probq.priors"),  # type: ignore[arg-type]
        (lambda: probq.Plan(codes=1, code_prior=priors.Normal()), "codes=2"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, part: str) -> None:
    with pytest.raises(probq.ProbqError, match=part):
        make()
