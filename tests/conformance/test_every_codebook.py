"""What every codebook must keep: levels by hand, nearest ones by brute force, draws and gradients by their law.

A new codebook is one line of `CODEBOOKS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

import probq
from probq import Plan, Quantized
from probq.codebooks import Codebook, Grid, binary, ladder, learned, levels, powers_of_two, pruned, ternary, uniform
from probq.testing import book_levels, code_probabilities, decided_copy


class Case(NamedTuple):
    """A codebook, its levels where they are few, and its width."""

    name: str
    book: Codebook
    values: list[float] | None
    bits: int


# here every codebook is that of a weight, those without negative levels as well
pytestmark = pytest.mark.filterwarnings("ignore:.*no negative levels")

CODEBOOKS = (
    Case("pruned", pruned(), [0], 0),
    Case("binary", binary(), [-1, 1], 1),
    Case("ternary", ternary(), [-1, 0, 1], 2),
    Case("uniform 1", uniform(1), [-1, 1], 1),
    Case("uniform 2", uniform(2), [-1, 0, 1], 2),
    Case("uniform 3", uniform(3), [-3, -2, -1, 0, 1, 2, 3], 3),
    Case("uniform 8", uniform(8), None, 8),
    Case("unsigned 1", uniform(1, signed=False), [0, 1], 1),
    Case("unsigned 2", uniform(2, signed=False), [0, 1, 2, 3], 2),
    Case("unsigned 5", uniform(5, signed=False), None, 5),
    Case("powers 2", powers_of_two(2), [-1, 0, 1], 2),
    Case("powers 4", powers_of_two(4), [-64, -32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32, 64], 4),
    Case("powers 5", powers_of_two(5), None, 5),
    Case("given", levels([-1.5, -0.5, 0.25]), [-1.5, -0.5, 0.25], 2),
    Case("learned", learned(range(5)), [0, 1, 2, 3, 4], 3),
    Case("coarse grid", Grid(-5, 4, 4), [-5, -1, 3, 7], 2),
    Case("grid beside 0", Grid(1, 3, 6), [1, 4, 7, 10, 13, 16], 3),
)
WEIGHT = ".weight"  # of a network that is one bare layer
BOOKS = [case.book for case in CODEBOOKS]
every_codebook = pytest.mark.parametrize("book", BOOKS, ids=[case.name for case in CODEBOOKS])


# The values


@pytest.mark.parametrize("case", [case for case in CODEBOOKS if case.values is not None], ids=lambda case: case.name)
def test_levels_by_hand(case: Case) -> None:
    assert case.values is not None
    assert case.book.levels().tolist() == case.values
    assert case.book.count == len(case.values)


def test_widths_are_those_said() -> None:
    assert [case.book.bits for case in CODEBOOKS] == [case.bits for case in CODEBOOKS]


@every_codebook
def test_levels_ascend_and_fill_the_width(book: Codebook) -> None:
    found = book.levels()
    assert found.isfinite().all()
    assert (found.diff() > 0).all()
    assert found.shape == (book.count,)
    assert 2**book.bits >= book.count > 2**book.bits / 2


@every_codebook
def test_a_codebook_is_a_value(book: Codebook) -> None:
    """Ladders and plans compare them, and use them as keys."""
    same = type(book)(**vars(book))
    assert same == book
    assert hash(same) == hash(book)
    assert ladder(book).rungs == (book,)
    assert ladder(book).bits == (book.bits,)


@every_codebook
def test_decode_inverts_encode_on_every_level(book: Codebook) -> None:
    codes = torch.arange(book.count)
    assert torch.equal(book.encode(book.decode(codes)), codes)
    assert torch.equal(book.nearest(book.levels()), book.levels())
    assert book.encode(book.levels()).dtype == torch.int64


def brute_force(book: Codebook, value: float) -> int:
    """Index of the nearest level, the upper of two equally near ones, in exact arithmetic (dyadic values)."""
    distances = [abs(level - value) for level in book.levels().tolist()]
    return max(k for k, d in enumerate(distances) if d == min(distances))


# multiples of 1/8, so that every difference and every midpoint is exact and ties are common
@given(st.sampled_from(BOOKS), st.lists(st.integers(-1200, 1200).map(lambda n: n / 8), min_size=1, max_size=20))
def test_nearest_is_the_brute_force_argmin_ties_up(book: Codebook, values: list[float]) -> None:
    expected = [brute_force(book, value) for value in values]
    assert book.encode(torch.tensor(values)).tolist() == expected
    assert book.nearest(torch.tensor(values)).tolist() == [book.levels().tolist()[code] for code in expected]


@given(st.sampled_from(BOOKS), st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=20))
def test_no_level_is_nearer_than_the_nearest(book: Codebook, values: list[float]) -> None:
    u = np.array(values)
    all_levels = book.levels().double().numpy()
    chosen = book.decode(book.encode(torch.tensor(values))).double().numpy()
    best = np.abs(all_levels - u[:, None]).min(1)
    assert (np.abs(chosen - u) <= best + 1e-6 * (np.abs(u) + np.abs(all_levels).max())).all()


@settings(max_examples=50)
@given(st.lists(st.integers(-64, 64), min_size=2, max_size=9, unique=True), st.integers(-600, 600))
def test_buckets_at_midpoints_are_the_argmin(numbers: list[int], eighths: int) -> None:
    book, value = levels(sorted(numbers)), eighths / 8
    assert int(book.encode(torch.tensor(value))) == brute_force(book, value)


@every_codebook
def test_nearest_keeps_the_precision_of_its_values(book: Codebook) -> None:
    for dtype in (torch.float32, torch.float64):
        values = torch.linspace(-3, 3, 7, dtype=dtype)
        assert book.nearest(values).dtype == dtype
        assert torch.equal(book.nearest(values), book.levels().to(dtype)[book.encode(values)])


# What becomes of it in a posterior and in integers


def linear(book: Codebook, **options: object) -> Quantized:
    """One layer whose weights all take the codebook; where there are few levels, each has a probability."""
    torch.manual_seed(2)
    codes = book.count if book.count <= 31 else 2
    plan = Plan(weight=ladder(book), codes=codes, spread=0.4, scales="tensor", **options)
    q = probq.quantize(nn.Linear(3, 2, bias=False), torch.randn(8, 3), plan)
    q.likelihood, q.temperature = probq.likelihoods.categorical, 1.0
    return q


@pytest.mark.filterwarnings("ignore:the posterior was never fitted")
@every_codebook
def test_draws_fit_the_law(book: Codebook) -> None:
    q = linear(book)
    wanted = code_probabilities(q.weights[WEIGHT], q.location(WEIGHT), 0)
    drawn = np.stack([a.codes[WEIGHT].reshape(-1) for a in q.sample(400, seed=1)])
    for weight, probabilities in enumerate(wanted):
        counts = np.bincount(drawn[:, weight], minlength=book.count)
        likely = probabilities > 0.01
        assert counts[probabilities == 0].sum() == 0
        cells = [*counts[likely], counts[~likely].sum()], [*probabilities[likely], probabilities[~likely].sum()]
        expected = 400 * np.array(cells[1])
        kept = expected > 1e-9
        if kept.sum() > 1:
            assert stats.chisquare(np.array(cells[0])[kept], expected[kept]).pvalue > 1e-4


@every_codebook
def test_gradients_of_the_mean_by_finite_differences(book: Codebook) -> None:
    q = linear(book)
    parameter, quantizer = q.net.get_parameter("weight"), q.weights[WEIGHT]
    mean = quantizer.law(q.location(WEIGHT), q.rung(WEIGHT, quantizer.probs())).mean
    direction = torch.linspace(-1, 2, mean.numel()).reshape(mean.shape)
    (found,) = torch.autograd.grad((mean * direction).sum() + 0 * parameter.sum(), parameter)
    values = book_levels(quantizer, 0)

    def of(weight: Tensor) -> np.ndarray:
        return (code_probabilities(quantizer, weight, 0) @ values) * direction.double().numpy().reshape(-1)

    step = 1e-6
    weight = parameter.detach().double()
    slopes = (of(weight + step) - of(weight - step)) / (2 * step)
    if book.count > 1:  # the window of the nearest two moves in jumps; every weight here lies inside one
        assert np.abs(slopes).max() > 0.01
    np.testing.assert_allclose(found.reshape(-1), slopes, rtol=2e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:the posterior was never fitted")
@every_codebook
def test_files_and_integers_hold_the_codebook(book: Codebook, tmp_path: Path) -> None:
    def net() -> nn.Module:
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    x = torch.randn(16, 3)
    q = probq.quantize(net(), x, Plan(weight=ladder(book), input=ladder(3, signed=False)))
    q.save(tmp_path / "q")
    again = probq.load(tmp_path / "q", net())
    assert again.weights["0.weight"].ladder == q.weights["0.weight"].ladder == ladder(book)
    for a in (q.mode(), *q.sample(2, seed=0)):
        model = probq.lower(again, a)
        exact = decided_copy(q, a)(x.double()).detach().numpy()
        np.testing.assert_array_equal(model(x.numpy()) * model.output_scale, exact)
        model.save(tmp_path / "m")
        np.testing.assert_array_equal(probq.IntegerModel.load(tmp_path / "m")(x.numpy()), model(x.numpy()))
