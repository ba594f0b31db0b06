"""Codebooks of vectors: k-means against enumeration and SciPy, nearest vectors by brute force, sizes by hand."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2

from probq import Budget, Energy, Plan, ProbqError, allocate, criteria, fit, quantize
from probq.codebooks import ladder, product, vector
from probq.codebooks.entries import from_entry, to_entry
from probq.codebooks.rounding.kmeans import weighted_kmeans
from probq.codebooks.rounding.vectors import Vectors
from probq.plot.weights import level_shares


def least_objective(x: np.ndarray, h: np.ndarray, count: int) -> float:
    """The least weighted sum of squares over all ways to divide the points."""
    best = np.inf
    for owner in itertools.product(range(count), repeat=len(x)):
        chosen = np.array(owner)
        total = 0.0
        for k in set(owner):
            a, b = x[chosen == k], h[chosen == k]
            total += float((b * (a - (b * a).sum(0) / b.sum(0)) ** 2).sum())
        best = min(best, total)
    return best


@pytest.mark.parametrize("count", [2, 3])
def test_kmeans_finds_the_best_of_all_divisions(count: int) -> None:
    for seed in range(4):
        chance = np.random.default_rng(seed)
        x, h = chance.normal(size=(7, 2)), chance.uniform(0.1, 3, (7, 2))
        least = least_objective(x, h, count)
        points, weights = torch.tensor(x), torch.tensor(h)
        begun = [torch.tensor(x[list(places)]) for places in itertools.combinations(range(7), count)]
        found = [weighted_kmeans(points, weights, count, centres=centres).objective for centres in begun]
        assert min(found) == pytest.approx(least, rel=1e-9)
        assert least * (1 - 1e-9) <= weighted_kmeans(points, weights, count, starts=9).objective < np.mean(found)


def test_kmeans_of_equal_weights_is_scipys() -> None:
    x = np.random.default_rng(0).normal(size=(200, 3))
    centres, _ = kmeans2(x, x[:5].copy(), 50, minit="matrix")
    found = weighted_kmeans(torch.tensor(x), torch.ones(200, 3), 5, centres=torch.tensor(x[:5]))
    assert np.allclose(found.centres.numpy(), centres, atol=1e-6)


def test_a_centre_is_the_weighted_mean_and_empty_ones_begin_again() -> None:
    x, h = torch.tensor([[0.0], [1.0], [10.0], [11.0]]), torch.tensor([[1.0], [3.0], [1.0], [1.0]])
    found = weighted_kmeans(x, h, 2, centres=torch.tensor([[0.0], [1e6]]))
    assert sorted(found.centres.flatten().tolist()) == [0.75, 10.5]


def test_random_numbers_are_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    weighted_kmeans(torch.arange(9.0).reshape(-1, 1), torch.ones(9, 1), 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("tables", [1, 3])
def test_the_nearest_vector_is_that_of_brute_force(tables: int) -> None:
    chance = np.random.default_rng(1)
    table, h = chance.integers(-9, 10, (tables, 6, 2)), chance.uniform(0.1, 3, (3, 2))
    vectors = Vectors(torch.tensor(table).float(), torch.tensor(h).float(), (4, 6))
    u = torch.tensor(chance.normal(size=(4, 6)) * 5).float()
    codes = vectors.codes(u)
    for row, place in itertools.product(range(4), range(3)):
        own = table[place % tables]
        distance = (h[place] * (u[row, 2 * place : 2 * place + 2].numpy() - own) ** 2).sum(1)
        assert codes[row, place] == distance.argmin()
        nearest = vectors.closest(u, 4)[row, place].tolist()
        assert nearest == np.argsort(distance)[:4].tolist()
        assert torch.equal(
            vectors.at(codes)[row, 2 * place : 2 * place + 2], torch.tensor(own[codes[row, place]]).float()
        )
    assert torch.equal(vectors.nearest(u), vectors.at(codes))
    assert torch.equal(vectors.of_weights(codes)[:, ::2], codes)


def test_of_equal_vectors_the_first_is_named() -> None:
    vectors = Vectors(torch.tensor([[[5.0, 1.0], [0.0, 2.0], [0.0, 2.0]]]), torch.ones(1, 2), (1, 2))
    assert vectors.codes(torch.tensor([[0.0, 2.0]])).tolist() == [[1]]


def test_sizes_by_hand() -> None:
    book = vector(256, 8, entry_bits=6)
    assert (book.bits, book.table_bits) == (1, 256 * 8 * 6)
    assert vector(5, 2).bits == 1.5
    cut = product(16, parts=4).for_row(24)
    assert (cut.size, cut.tables, cut.table_bits) == (6, 4, 16 * 24 * 8)
    assert cut.bits == pytest.approx(4 / 6)
    assert from_entry(to_entry(cut)) == cut
    assert ladder(product(16, 4), 4).for_row(24).bits == (cut.bits, 4)


def test_bad_input_is_told_what_to_do() -> None:
    net, x = torch.nn.Linear(12, 8), torch.rand(5, 12)

    def told(*rungs: object, **options: object) -> str:
        with pytest.raises(ProbqError) as caught:
            quantize(net, x, Plan(weight=ladder(*rungs), **options))  # type: ignore[arg-type]
        return str(caught.value)

    assert "do not fill a row of 12; give a size that divides 12" in told(vector(4, 5))
    assert "5 parts do not divide a row of 12 weights" in told(product(4, 5))
    assert "too large for a weight of 96 numbers" in told(vector(64, 2))
    assert "give fewer vectors" in told(product(8, 3))
    assert "the widths of a ladder must grow" in told(product(2, 1), vector(2, 12))
    assert "leave it out for a ladder with vectors" in told(vector(4, 4), free_codes=True)
    assert "leave it out for a ladder with vectors" in told(vector(4, 4), keep_zeros=True)
    assert 'Plan(gates="tensor")' in told(vector(4, 4), gates="channel") or "leave it out" in told(
        vector(4, 4), gates="channel"
    )
    with pytest.raises(ProbqError, match="vectors are for weights alone"):
        Plan(input=ladder(vector(4, 4)))
    with pytest.raises(ProbqError, match="a number of vectors from 2 to 65536, not 1"):
        vector(1, 4)
    with pytest.raises(ProbqError, match="a number of parts from 1 to"):
        product(4, 0)
    with pytest.raises(ProbqError, match="give it in"):
        vector(4, 4).nearest(torch.zeros(4))
    with pytest.raises(ProbqError, match="follows from the length of a row"):
        product(4, 4).bits  # noqa: B018
    torch.nn.init.constant_(net.weight, 1e19)
    assert "nothing above 1e+18 can be quantized" in told(vector(4, 4))
    torch.nn.init.zeros_(net.weight)
    assert "1 different sub-vectors; train the network first" in told(vector(4, 4))


@pytest.mark.parametrize("exponent", [-80, 50])
def test_codes_of_vectors_do_not_change_with_the_unit(exponent: int) -> None:
    torch.manual_seed(0)
    net = torch.nn.Linear(12, 8, bias=False)
    x, plan = torch.rand(5, 12), Plan(weight=ladder(vector(4, 4)))
    before = quantize(net, x, plan).mode().codes[".weight"]
    net.weight.data *= 2.0**exponent
    after = quantize(net, x, plan).mode().codes[".weight"]
    assert np.array_equal(after, before)


def on_vectors() -> tuple[Any, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A network whose weights have 1.5 bits, as vectors, or 4, and a batch."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    x, y = torch.rand(32, 4), torch.arange(32) % 3
    return quantize(net, x, Plan(ladder(vector(8, 2), 4))), [(x, y)]


@pytest.mark.filterwarnings("ignore:.* energies of loss are negative")  # of a random network
def test_criteria_take_widths_that_are_fractions(tmp_path: Path) -> None:
    q, data = on_vectors()
    energy = criteria.loss(q, data)
    assert energy.widths[:2] == ((1.5, 4), (1.5, 4))
    losses = []
    for bits in (1.5, 4):
        own = copy.deepcopy(q)
        for name, quantizer in own.named_quantizers():
            quantizer.fix(bits if name == "0.weight" else max(quantizer.ladder.bits))
        x, y = data[0]
        output = own.eval()(x)
        losses.append(float(torch.nn.functional.cross_entropy(output, y)))
    assert energy.unary[0][0] == pytest.approx(losses[0] - losses[1], abs=1e-5)
    energy.save(tmp_path / "e.safetensors")
    assert Energy.load(tmp_path / "e.safetensors").widths == energy.widths
    assert allocate(q, energy, Budget(percent=8)).percent() <= 8
    with pytest.raises(ProbqError, match=r"limpq learns a step for each width, and 0\.weight has vectors"):
        criteria.limpq(q, data)


def test_a_fit_with_validation_decides_between_vectors_and_single_levels() -> None:
    q, data = on_vectors()
    fit(q, data * 4, Budget(percent=8), epochs=2, validation=data, evaluations=6, progress=False, seed=0)
    assert q.mode().percent() <= 8


def test_levels_of_vectors_are_not_drawn() -> None:
    q, _ = on_vectors()
    for _, quantizer in q.named_quantizers():
        quantizer.fix(min(quantizer.ladder.bits))
    with pytest.raises(ProbqError, match="have no levels of their own"):
        level_shares(q, "0.weight")
