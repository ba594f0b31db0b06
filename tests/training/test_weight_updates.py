"""Updates of weights at fixed widths: closed forms by brute force, objectives that never rise, residuals that fall."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import nn

import probq
from probq.codebooks import binary, ladder, learned, powers_of_two, ternary, uniform, vector
from probq.codebooks.rounding.nearest import nearest_level
from probq.training.weight_updates import (
    ADMM,
    admm,
    fit_levels,
    fit_scales,
    loss_aware,
    weighted_levels,
    weighted_scale,
    xnor_scale,
)
from tests.exact_integers import assert_exact

GENERATOR = torch.Generator().manual_seed(0)
X = torch.rand(64, 4, generator=GENERATOR)
Y = (X[:, 0] > X[:, 1]).long()


def error(w: torch.Tensor, d: torch.Tensor, scale: Any, levels: Any) -> float:
    return float((d * (scale * nearest_level(w / scale, levels) - w).square()).sum())


def test_the_scale_of_binary_weights_by_brute_force() -> None:
    w = torch.randn(3, 5, generator=GENERATOR).double()
    found = xnor_scale(w, (3, 1))
    for row in range(3):

        def loss(a: float, own: torch.Tensor = w[row]) -> float:
            return float((own - a * own.sign()).square().sum())

        best = optimize.minimize_scalar(loss, bounds=(0, 4), method="bounded", options={"xatol": 1e-9}).x
        assert found[row].item() == pytest.approx(best, abs=1e-6)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 5)
    best = min(float((w[0] - xnor_scale(w[0]) * one).square().sum()) for one in signs)
    assert float((w[0] - xnor_scale(w[0]) * w[0].sign()).square().sum()) == pytest.approx(best)


def test_the_weighted_scale_of_binary_weights_is_exact_after_one_round() -> None:
    w, d = torch.randn(4, 6, generator=GENERATOR), torch.rand(4, 6, generator=GENERATOR)
    scale, levels = weighted_scale(w, d, binary(), torch.ones(4, 1), rounds=1)
    torch.testing.assert_close(scale, (d * w.abs()).sum(1, keepdim=True) / d.sum(1, keepdim=True))
    assert torch.equal(levels, torch.where(w >= 0, 1.0, -1.0))


@pytest.mark.parametrize("book", [binary(), ternary(), uniform(3), powers_of_two(4).levels()])
def test_alternation_never_increases_its_objective(book: Any) -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        w, d = (torch.randn(40, generator=generator).double() for _ in range(2))
        d, scale = d.square() + 1e-3, torch.rand((), generator=generator).double() + 0.05
        book = book.double() if isinstance(book, torch.Tensor) else book
        errors = [error(w, d, scale, book)]
        for _ in range(6):
            scale, _ = weighted_scale(w, d, book, scale, rounds=1)
            errors.append(error(w, d, scale, book))
        assert all(after <= before + 1e-12 for before, after in pairwise(errors))


def test_the_ternary_scale_by_brute_force_over_thresholds() -> None:
    """Of every set of the largest weights the best scale; alternation from a few starts finds the best of all."""
    w = torch.randn(12, generator=GENERATOR).double()
    size = w.abs().sort(descending=True)[0]
    best = min(float(w.square().sum() - size[:k].sum() ** 2 / k) for k in range(1, 13))
    starts = [
        weighted_scale(w, torch.ones(12), ternary(), torch.tensor(a).double(), 30)[0] for a in np.linspace(0.2, 3, 15)
    ]
    assert min(error(w, torch.ones(12), a, ternary()) for a in starts) == pytest.approx(best, rel=1e-9)


def test_levels_are_means_of_their_members_and_no_worse_than_before() -> None:
    w, d = torch.randn(200, generator=GENERATOR).double(), torch.rand(200, generator=GENERATOR).double()
    levels = torch.tensor([-3.0, -0.1, 0.1, 3.0, 50.0]).double()

    def loss(table: torch.Tensor) -> float:
        return float((d * (w.unsqueeze(1) - table).abs().amin(1).square()).sum())

    errors = [loss(levels)]
    for _ in range(60):
        levels = weighted_levels(w, d, levels, rounds=1)
        errors.append(loss(levels))
    assert all(after <= before + 1e-12 for before, after in pairwise(errors))
    owner = (w.unsqueeze(1) - levels).abs().argmin(1)
    for k in range(4):
        assert levels[k].item() == pytest.approx(np.average(w[owner == k], weights=d[owner == k]))
    assert levels[4] == 50  # without members


def test_residuals_of_admm_fall_on_a_convex_problem() -> None:
    """Least squares in a box; SciPy's bounded solver knows the answer."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(20, 5)), rng.normal(size=20) * 3
    w = torch.zeros(5, dtype=torch.float64)
    turns = ADMM({"w": w}, lambda name, tensor: tensor.clamp(-0.5, 0.5), rho=10.0)
    matrix, right = a.T @ a + 10 * np.eye(5), a.T @ b
    residuals = []
    for _ in range(300):
        pulled = (turns.copies["w"] - turns.duals["w"]).numpy()
        w.copy_(torch.from_numpy(np.linalg.solve(matrix, right + 10 * pulled)))
        turns.update()
        residuals.append(turns.residual())
    assert residuals[-1] < 1e-8 < residuals[0]
    assert residuals[20] < residuals[0] / 2
    wanted = optimize.lsq_linear(a, b, (-0.5, 0.5), tol=1e-12).x
    np.testing.assert_allclose(turns.copies["w"], wanted, atol=1e-6)


def quantized(book: Any = 2, **options: Any) -> probq.Quantized:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return probq.quantize(net, X, probq.Plan(ladder(book), input=ladder(4, signed=False), **options))


def loss_of(q: probq.Quantized) -> float:
    return float(nn.functional.cross_entropy(q(X), Y).detach())


@pytest.mark.parametrize("book", [1, 3])
def test_every_update_trains_a_network_of_exact_integers(book: int, tmp_path: Path) -> None:
    start = quantized(book)
    before = loss_of(start)
    batches = [(X[:32], Y[:32]), (X[32:], Y[32:])] * 4
    by_admm = admm(start, batches, epochs=8, rate=0.02, progress=False)
    aware = quantized(book)
    probq.fit(
        aware, batches, epochs=8, optimizer=loss_aware(aware), rates=probq.Rates(weights=0.02), progress=False, seed=0
    )
    for q in (by_admm, aware):
        assert loss_of(q) < before
        assert_exact(q.at(q.mode()).eval(), X, tmp_path)
    assert start.mode() == quantized(book).mode()  # what was given stays


def test_loss_aware_scales_are_those_of_adams_curvature() -> None:
    q = quantized(1)
    weight, quantizer = q.net[0].weight, q.weights["0.weight"]
    optimizer = loss_aware(q)([{"params": list(q.parameters()), "lr": 1e-2}])
    for k in range(3):
        optimizer.zero_grad()
        (weight * torch.arange(32.0).reshape(8, 4) * (k + 1)).sum().backward()
        optimizer.step()
    v = torch.zeros_like(weight)
    for k in range(3):  # Adam's second moment by its definition
        v = 0.999 * v + 0.001 * (torch.arange(32.0).reshape(8, 4) * (k + 1)).square()
    d = (v / (1 - 0.999**3)).sqrt() + 1e-8
    wanted = (d * weight.abs()).sum(1, keepdim=True) / d.sum(1, keepdim=True)
    torch.testing.assert_close(quantizer.log2_scale[0].detach().exp2(), wanted.detach(), rtol=1e-4, atol=1e-6)


def test_scales_and_levels_of_networks_leave_less_error() -> None:
    q = quantized(1)
    for quantizer in q.weights.values():
        quantizer.log2_scale.data += 1.0
    found = fit_scales(q)
    for name, quantizer in found.weights.items():
        w = found.net.get_parameter(name).detach()
        torch.testing.assert_close(quantizer.log2_scale[0].exp2().detach(), xnor_scale(w, (len(w), 1)))
    q = quantized(learned([-3.0, -0.5, 0.5, 3.0]), scales="tensor")
    fitted = fit_levels(q)
    for name, quantizer in q.weights.items():
        w = q.net.get_parameter(name).detach()
        errors = [
            float((w - s.scales()[0] * nearest_level(w / s.scales()[0], s.levels(0))).square().sum().detach())
            for s in (quantizer, fitted.weights[name])
        ]
        assert errors[1] < errors[0]


def frozen() -> probq.Quantized:
    q = quantized()
    q.net.requires_grad_(False)
    return q


def tuned_by(optimizer: Any) -> probq.History:
    return probq.fit(quantized(), [(X, Y)], epochs=1, optimizer=optimizer, progress=False)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: admm(quantized(), [(X, Y)], rho=0.0), "rho must be a number above 0"),
        (lambda: admm(quantized(), [(X, Y)], epochs=0), "epochs"),
        (lambda: admm(quantized(), [(X, Y)], every=0), "every"),
        (lambda: admm(quantized(), [(X, Y)], rate=-1.0), "rate is a learning rate above 0"),
        (lambda: fit_levels(quantized()), "no effect on a network without learned levels"),
        (lambda: loss_aware(probq.quantize(nn.Sequential(nn.Linear(4, 2)), X)), "widths are fixed"),
        (lambda: fit_scales(quantized(2, free_codes=True)), "free_codes"),
        (lambda: fit_scales(quantized(vector(2, 2))), "vector codebooks"),
        (lambda: fit_scales(quantized(), rounds=0), "rounds must be an integer of 1 or more"),
        (lambda: loss_aware(quantized(), rounds=-1), "rounds must be an integer of 1 or more"),
        (lambda: admm(frozen(), [(X, Y)], progress=False), "those of this network are frozen"),
        (lambda: tuned_by(loss_aware(quantized())), "a network none of whose weights is trained"),
        (lambda: xnor_scale(torch.rand(4, 3), (3, 1)), r"give \(\) for one scale of all, or \(4, 1\)"),
        (lambda: xnor_scale(torch.empty(0, 3)), "one weight or more"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, part: str) -> None:
    with pytest.raises(probq.ProbqError, match=part):
        make()
