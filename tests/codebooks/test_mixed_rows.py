"""Rows of one weight on codebooks of several families: laws row by row, limits on shares, exact integers everywhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import probq
from probq import priors
from probq.codebooks import ladder, pruned, ternary, uniform
from probq.codebooks import levels as given
from probq.codebooks import powers_of_two as powers
from probq.codebooks.rounding.nearest import BroadcastTable, code_indices, code_levels, nearest_level
from probq.cost import Share
from probq.network.distributions.codes import Codes
from probq.network.distributions.uniform_codes import UniformCodes
from probq.priors import OnRung
from tests.exact_integers import assert_exact

BOOKS = (powers(3), uniform(4), pruned(), ternary(), uniform(8))
ROWS = torch.tensor([[0], [3], [1], [2], [4], [0]])
MIXED = BroadcastTable(tuple(book.levels() for book in BOOKS), ROWS)
X = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 10


def locations() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.cat([torch.randn(6, 40) * 4, torch.tensor([-3.0, -1.5, 0.5, 1.5, 3.0, 9.0]).expand(6, -1)], 1)


def row_levels(row: int) -> torch.Tensor:
    return BOOKS[int(ROWS[row])].levels()


def test_rounding_is_that_of_each_row_by_brute_force() -> None:
    u = locations()
    codes = code_indices(MIXED, u)
    for row in range(6):
        own = row_levels(row)
        distance = (u[row][:, None] - own).abs()
        best = len(own) - 1 - distance.flip(1).argmin(1)  # ties to the upper level
        assert torch.equal(codes[row], best)
    assert torch.equal(code_levels(MIXED, codes), nearest_level(u, MIXED))


@pytest.mark.parametrize("nearest", [1, 2, 3, 7])
def test_laws_are_those_of_each_row(nearest: int) -> None:
    """The same row as a tensor of one codebook, with all moments, entropies and gradients of the location."""
    location = locations().requires_grad_()
    scale = torch.tensor([0.5, 1.0, 2.0, 1.0, 0.25, 1.5]).reshape(6, 1)
    law = Codes(location, scale, MIXED, torch.tensor(0.3), nearest)
    through = nearest_level(location / scale, MIXED, straight_through=True)
    for row in range(6):
        alone, own = location.detach()[row].clone().requires_grad_(), row_levels(row)
        one = Codes(alone, scale[row], own, torch.tensor(0.3), nearest)
        torch.testing.assert_close(law.mean[row], one.mean)
        torch.testing.assert_close(law.entropies()[row], one.entropies(), atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(law.variance[row], one.variance, atol=1e-5, rtol=1e-4)
        found, wanted = through[row], nearest_level(alone / scale[row], own, straight_through=True)
        if nearest > 1 and len(own) > 1:
            found, wanted = found + law.mean[row] + law.entropies()[row], wanted + one.mean + one.entropies()
        (grads,) = torch.autograd.grad(found.sum(), location, retain_graph=True)
        torch.testing.assert_close(grads[row], torch.autograd.grad(wanted.sum(), alone)[0], atol=1e-5, rtol=1e-4)


def test_priors_of_each_row_sum_to_one_over_its_own_levels() -> None:
    shape = torch.Size([6, 255])
    every = torch.zeros(shape)
    inside = torch.zeros(shape, dtype=torch.bool)
    for row in range(6):
        own = row_levels(row)
        every[row, : len(own)], inside[row, : len(own)] = own, True
    on = OnRung(shape, MIXED, torch.full((6, 1), 0.5), {})
    for prior in (priors.Normal(1.0), priors.ThreeWells(0.5), priors.BitPlanes(0.3)):
        law: Any = prior.law(on)
        total = (law.log_probs(every).double().exp() * inside).sum(1)
        np.testing.assert_allclose(total, 1, rtol=1e-5)
    assert UniformCodes(torch.Size([6, 2]), MIXED).log_count() == pytest.approx(
        2 * sum(np.log(len(row_levels(row))) for row in range(6))
    )
    drawn = UniformCodes(torch.Size([6, 200]), MIXED).rsample()
    assert all(set(drawn[row].tolist()) <= set(row_levels(row).tolist()) for row in range(6))


def quantized(**options: Any) -> probq.Quantized:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    return probq.quantize(net.eval(), X, probq.Plan(ladder(powers(3), 4, 8), gates="channel", **options))


def test_limits_on_shares_hold_in_a_fit_its_file_and_its_draws(tmp_path: Path) -> None:
    q = quantized()
    limits = [probq.Budget(percent=30, cost=Share(4)), probq.Budget(percent=5, cost=Share(8))]
    probq.fit(q, [(X, Y)], limits, epochs=4, progress=False, seed=0)
    q.save(tmp_path / "q.safetensors")
    loaded = probq.load(tmp_path / "q.safetensors", quantized().net)
    assert loaded.budget == q.budget == tuple(limits)
    for decision in (q.mode(), loaded.mode(), *q.sample(4, seed=0)):
        rows = [np.repeat(decision.widths[n], int(np.prod(w.shape[1:]))) for n, w in q.weights.items()]
        flat = np.concatenate(rows)
        shares = {bits: 100 * (flat == bits).mean() for bits in (3, 4, 8)}
        assert shares[4] <= 30
        assert shares[8] <= 5
        for bits, share in shares.items():
            assert decision.percent(Share(bits)) == pytest.approx(share)


@pytest.mark.parametrize("profile", ["dyadic", "shift"])
def test_integers_of_mixed_rows_are_exact(profile: str, tmp_path: Path) -> None:
    q = quantized(profile=profile)
    rng = np.random.default_rng(0)
    for name, quantizer in q.named_quantizers():
        widths = rng.choice(quantizer.ladder.bits, quantizer.gates) if name in q.weights else 8
        quantizer.fix(widths)
    assert all(len(set(q.mode().widths[name].tolist())) == 3 for name in q.weights)
    model = assert_exact(q.at(q.mode()).eval(), X, tmp_path)
    model.save(tmp_path / "m.safetensors")
    assert np.array_equal(probq.IntegerModel.load(tmp_path / "m.safetensors")(X), model(X))
    for name, widths in q.mode().widths.items():
        if name in q.weights:
            rows = next(node for node in model.nodes if node.name == name.removesuffix(".weight")).tensors["weight"]
            assert set(np.abs(rows[widths == 3]).reshape(-1).tolist()) <= {0, 1, 2, 4}  # products that are shifts
    probq.export.memory.write(model, tmp_path / "memory")
    assert probq.export.verify(model, tmp_path / "memory", X).differing == 0
    if profile == "shift":
        probq.export.qonnx.write(model, tmp_path / "q.onnx")
        assert probq.export.verify(model, tmp_path / "q.onnx", X).differing == 0
    else:
        with pytest.raises(probq.ProbqError, match="powers of two"):
            probq.export.qonnx.write(model, tmp_path / "q.onnx")


def quantized_at(book: Any) -> probq.Quantized:
    return probq.quantize(nn.Linear(2, 2), torch.rand(3, 2), probq.Plan(ladder(book), gates="channel"))


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: Share(-1), "width in bits"),
        (lambda: ladder(powers(4), 4, 8), "beside uniform"),
        (lambda: quantized_at(given([-0.5, 1])), "whole numbers"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, part: str) -> None:
    with pytest.raises(probq.ProbqError, match=part):
        make()
