"""Priors that charge or drop bit planes: probabilities bit by bit, gradients by differences, entropies, files, fits."""

import math
from collections.abc import Callable
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
from probq.codebooks import Grid, ladder, learned, levels, powers_of_two, uniform
from probq.network.distributions.codes import Codes
from probq.priors import OnRung
from tests.exact_integers import assert_exact
from tests.prior_cases import BOOKS, X, Y

OWN_BOOKS = {**BOOKS, "unsigned": uniform(3, signed=False), "powers": powers_of_two(3)}
CHARGES = (0.4, -1.1, 2.0)


def law_of(prior: priors.CodePrior, book: Any, weights: int = 1, own: torch.Tensor | None = None) -> Any:
    there = book if isinstance(book, Grid) else book.levels()
    return prior.law(OnRung(torch.Size([weights]), there, torch.tensor(0.5), {} if own is None else {"logits": own}))


def charged(values: list[float], charges: Any = CHARGES) -> np.ndarray:
    """Bits by Python's own integers."""
    count = max(int(abs(value)).bit_length() for value in values)
    bits = [format(int(abs(value)), f"0{count}b") if count else "" for value in values]
    weights = [math.exp(-sum(c for c, bit in zip(charges, text, strict=False) if bit == "1")) for text in bits]
    return np.array(weights) / sum(weights)


def dropped(values: list[float], log_odds: Any = CHARGES) -> np.ndarray:
    """What a number of kept planes, then a level of the grid they leave, come to, all told."""
    count = max(int(abs(value)).bit_length() for value in values)
    total, reached = np.zeros(len(values)), 1.0
    for kept in range(count + 1):
        goes_on = 1 / (1 + math.exp(-log_odds[kept])) if kept < count else 0.0
        grid = np.array([value % 2 ** (count - kept) == 0 for value in values])
        if grid.any():
            total += reached * (1 - goes_on) * grid / grid.sum()
        reached *= goes_on
    return total / total.sum()


KINDS: dict[str, tuple[priors.CodePrior, Callable[..., np.ndarray]]] = {
    "charged": (priors.BitPlanes(), charged),
    "dropped": (priors.DropBits(), dropped),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("book", OWN_BOOKS.values(), ids=OWN_BOOKS)
def test_probabilities_bit_by_bit(kind: str, book: Any) -> None:
    prior, by_hand = KINDS[kind]
    values = book.levels()
    found = law_of(prior, book, own=torch.tensor(CHARGES)).log_probs(values.expand(1, -1)).double().exp()[0]
    np.testing.assert_allclose(found, by_hand(values.tolist()), rtol=1e-5)


def test_one_charge_for_all_planes() -> None:
    found = law_of(priors.BitPlanes(0.7), uniform(4)).log_probs(uniform(4).levels().expand(1, -1)).double().exp()[0]
    np.testing.assert_allclose(found, charged(list(range(-7, 8)), (0.7, 0.7, 0.7)), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_divergence_by_enumeration_and_its_gradients_by_differences(kind: str) -> None:
    prior, by_hand = KINDS[kind]
    values = uniform(4).levels().double().numpy()

    def divergence(numbers: np.ndarray) -> float:
        total = 0.0
        for location in numbers[:2]:
            bounds = np.concatenate([[-np.inf], ((values[1:] + values[:-1]) / 2 - location / 0.5) / 0.6, [np.inf]])
            p = np.diff(stats.logistic.cdf(bounds))
            total += float((p[p > 0] * np.log(p[p > 0] / by_hand(values, numbers[2:])[p > 0])).sum())
        return total

    numbers = np.array([0.2, -1.4, 0.6, -0.3, 1.2])
    location, own = (torch.tensor(part).float().requires_grad_() for part in (numbers[:2], numbers[2:]))
    p = Codes(location, torch.tensor(0.5), uniform(4), torch.tensor(0.6), nearest=15)
    found = kl_divergence(p, law_of(prior, uniform(4), 2, own))
    assert found.item() == pytest.approx(divergence(numbers), rel=1e-5)
    wanted = optimize.approx_fprime(numbers, divergence, 1e-6)
    np.testing.assert_allclose(torch.cat(torch.autograd.grad(found, [location, own])), wanted, rtol=1e-3, atol=1e-5)


def test_learned_charges_make_planes_cost_their_entropy() -> None:
    """All of `0 .. 7`: bits are independent, so the best charges leave `-log P = sum N h(n / N)`, concave in `n`."""
    codes = torch.tensor([0.0, 0.0, 1.0, 4.0, 0.0, 1.0, 5.0, 0.0, 2.0, 0.0])
    own = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([own], max_iter=100)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = -law_of(priors.BitPlanes(), uniform(3, signed=False), 10, own).log_prob(codes)
        loss.backward()
        return loss.detach()

    optimizer.step(closure)
    shares = np.array([2, 1, 3]) / 10
    assert float(closure()) == pytest.approx(10 * stats.bernoulli(shares).entropy().sum(), rel=1e-4)
    np.testing.assert_allclose(own.detach(), np.log((1 - shares) / shares), atol=1e-2)


@pytest.mark.parametrize("prior", [priors.BitPlanes(), priors.BitPlanes(0.5), priors.DropBits()])
@pytest.mark.filterwarnings("ignore:at 0 bits of")  # what is fitted and saved matters here
def test_a_fit_with_its_file_and_integers(prior: priors.CodePrior, tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    q = probq.quantize(net, X, probq.Plan(ladder(0, 2, 3, 4), network_input=ladder(8), code_prior=prior))
    budget = probq.Budget(percent=4.0)
    probq.fit(q, [(X, Y)], budget, epochs=10, temperature=0.1, progress=False, seed=0)
    q.save(tmp_path / "q.safetensors")
    loaded = probq.load(tmp_path / "q.safetensors", net)
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in q.state_dict().items())
    assert loaded.weights["0.weight"].code_prior_law == prior
    if not isinstance(prior, priors.BitPlanes) or prior.charge is None:
        assert q.weights["0.weight"].prior_logits.abs().max() > 1e-3
    assert_exact(q.at(q.mode(budget)), X, tmp_path)


@pytest.mark.parametrize(("prior", "falls"), [(priors.BitPlanes(), True), (None, False)])
def test_planes_empty_and_widths_fall_at_fixed_widths(prior: priors.CodePrior | None, falls: bool) -> None:
    """Nothing in the data needs more than one sign: under the prior low planes empty, and are dropped."""
    torch.manual_seed(5)
    x = torch.randn(64, 3)
    y = (x[:, 0] > 0).long()
    net = nn.Sequential(nn.Linear(3, 2, bias=False))
    net[0].weight.data = torch.tensor([[-1.3, 0.31, -0.22], [1.1, -0.17, 0.41]])
    q = probq.quantize(net, x, probq.Plan(ladder(2, 3, 4, 5, 6), scales="tensor", code_prior=prior))
    q.weights["0.weight"].fix(6)
    q.inputs["0.input"].fix(8)
    if prior is not None:
        q.weights["0.weight"].prior_logits.data.fill_(1.0)
    options: dict[str, Any] = {"temperature": 5.0, "rounding": False, "draws": 1, "progress": False, "seed": 0}
    probq.fit(q, [(x, y)] * 10, epochs=20, search=0.0, rates=probq.Rates(weights=0.02, gates=0.2), **options)
    tuned = probq.drop_planes(q.at(q.mode()))
    assert (tuned.mode().widths["0.weight"] < 6) == falls
    assert torch.equal(tuned(x), q.at(q.mode())(x))


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: priors.BitPlanes(math.nan), "charge"),
        (lambda: probq.Plan(ladder(1), code_prior=priors.BitPlanes()), "no effect on codebooks of 1 bits"),
        (lambda: probq.Plan(ladder(0, 1), code_prior=priors.DropBits()), "no effect on codebooks of 0, 1 bits"),
        (lambda: probq.Plan(ladder(levels([-1.5, 0, 1.5])), code_prior=priors.BitPlanes()), "whole numbers"),
        (lambda: probq.Plan(ladder(learned([-1, 0, 1])), code_prior=priors.DropBits()), "whole numbers"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, part: str) -> None:
    with pytest.raises(probq.ProbqError, match=part):
        make()
