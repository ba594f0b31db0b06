"""Codebooks: levels by hand, nearest levels by brute force, and every refusal."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probq import ProbqError
from probq.codebooks import Grid, Table, binary, ladder, learned, levels, powers_of_two, pruned, ternary, uniform
from probq.codebooks.codebook import encode, half_up

BY_HAND = {
    "pruned": (pruned(), [0], 0),
    "binary": (binary(), [-1, 1], 1),
    "ternary": (ternary(), [-1, 0, 1], 2),
    "uniform 1": (uniform(1), [-1, 1], 1),
    "uniform 2": (uniform(2), [-1, 0, 1], 2),
    "uniform 3": (uniform(3), [-3, -2, -1, 0, 1, 2, 3], 3),
    "unsigned 1": (uniform(1, signed=False), [0, 1], 1),
    "unsigned 2": (uniform(2, signed=False), [0, 1, 2, 3], 2),
    "powers 2": (powers_of_two(2), [-1, 0, 1], 2),
    "powers 4": (powers_of_two(4), [-64, -32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32, 64], 4),
    "given": (levels([-1.5, -0.5, 0.25]), [-1.5, -0.5, 0.25], 2),
    "learned": (learned(range(5)), [0, 1, 2, 3, 4], 3),
    "coarse grid": (Grid(-5, 4, 4), [-5, -1, 3, 7], 2),
}
BOOKS = [book for book, _, _ in BY_HAND.values()] + [
    Grid(1, 3, 6),
    uniform(8),
    uniform(5, signed=False),
    powers_of_two(5),
]


@pytest.mark.parametrize(("book", "values", "bits"), BY_HAND.values(), ids=BY_HAND)
def test_levels_by_hand(book: Grid | Table, values: list[float], bits: int) -> None:
    assert book.levels().tolist() == values
    assert (book.count, book.bits) == (len(values), bits)


@pytest.mark.parametrize("bits", range(1, 17))
def test_uniform_codebooks_fill_their_width(bits: int) -> None:
    signed, unsigned = uniform(bits), uniform(bits, signed=False)
    assert signed.bits == unsigned.bits == bits
    assert signed.start == -signed.stop
    assert signed.stop == max(1, 2 ** (bits - 1) - 1)
    assert (unsigned.start, unsigned.stop) == (0, 2**bits - 1)
    assert ladder(bits).rungs == (signed,)


@pytest.mark.parametrize("book", BOOKS, ids=str)
def test_decode_inverts_encode_on_every_level(book: Grid | Table) -> None:
    codes = torch.arange(book.count)
    assert torch.equal(book.encode(book.decode(codes)), codes)
    assert torch.equal(book.nearest(book.levels()), book.levels())
    assert book.encode(book.levels()).dtype == torch.int64


def brute_force(book: Grid | Table, value: float) -> int:
    """Index of the nearest level, the upper of two equally near ones, in exact arithmetic (dyadic values)."""
    distances = [abs(level - value) for level in book.levels().tolist()]
    return max(k for k, d in enumerate(distances) if d == min(distances))


# multiples of 1/8, so that every difference and every midpoint is exact and ties are common
@given(st.sampled_from(BOOKS), st.lists(st.integers(-1200, 1200).map(lambda n: n / 8), min_size=1, max_size=20))
def test_nearest_is_the_brute_force_argmin_ties_up(book: Grid | Table, values: list[float]) -> None:
    expected = [brute_force(book, value) for value in values]
    assert book.encode(torch.tensor(values)).tolist() == expected
    assert book.nearest(torch.tensor(values)).tolist() == [book.levels().tolist()[code] for code in expected]


@given(st.sampled_from(BOOKS), st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=20))
def test_no_level_is_nearer_than_the_nearest(book: Grid | Table, values: list[float]) -> None:
    u = np.array(values)
    all_levels = book.levels().double().numpy()
    chosen = book.decode(book.encode(torch.tensor(values))).double().numpy()
    best = np.abs(all_levels - u[:, None]).min(1)
    assert (np.abs(chosen - u) <= best + 1e-6 * (np.abs(u) + np.abs(all_levels).max())).all()


@settings(max_examples=50)
@given(st.lists(st.integers(-64, 64), min_size=2, max_size=9, unique=True), st.integers(-600, 600))
def test_buckets_at_midpoints_are_the_argmin(numbers: list[int], eighths: int) -> None:
    book, value = levels(sorted(numbers)), eighths / 8
    assert int(encode(torch.tensor(value), book.levels())) == brute_force(book, value)


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (0.5 - 2.0**-25, 0),
        (0.5, 1),
        (-0.5, 0),
        (-0.5 - 2.0**-24, -1),
        (1.5, 2),
        (2.5, 3),
        (8388607.5, 8388608),
        (-2.5, -2),
    ],
)
def test_half_up_is_exact(value: float, rounded: int) -> None:
    assert (
        float(half_up(torch.tensor(value))) == rounded == math.floor(value + 0.5 if abs(value) != 0.5 - 2**-25 else 0)
    )


def test_grids_round_exactly_just_below_a_tie() -> None:
    below = torch.tensor(0.5 - 2.0**-25)
    assert [uniform(bits).nearest(below).item() for bits in (2, 4, 8, 16)] == [0, 0, 0, 0]
    assert uniform(4, signed=False).encode(below).item() == 0
    assert binary().encode(torch.tensor([-(2.0**-30), 0.0])).tolist() == [0, 1]


def test_float64_values_keep_their_precision() -> None:
    u = torch.tensor([0.5 - 2.0**-54, 0.5], dtype=torch.float64)
    assert uniform(8).nearest(u).tolist() == [0.0, 1.0]
    assert uniform(8).nearest(u).dtype == torch.float64


def test_ladders_hold_what_was_asked_for() -> None:
    mixed = ladder(0, binary(), ternary(), powers_of_two(3), 8)
    assert mixed.bits == (0, 1, 2, 3, 8)
    assert mixed.rungs[-1] == uniform(8)
    assert len(mixed) == 5
    assert mixed.signed
    assert not ladder(0, 2, 4, signed=False).signed


@pytest.mark.parametrize(
    ("rungs", "part"),
    [
        ((), "at least one rung"),
        ((4, 2), "must grow"),
        ((2, 2), "must grow"),
        ((2, ternary()), "must grow"),
        ((17,), "1 to 16"),
        ((-1,), "1 to 16"),
        ((True,), "1 to 16"),
        ((False,), "1 to 16"),
        ((2.0,), "a width in bits or a codebook"),
        (("2",), "a width in bits or a codebook"),
        (([2, 4],), "a width in bits or a codebook"),
    ],
)
def test_ladders_refuse(rungs: tuple, part: str) -> None:
    with pytest.raises(ProbqError, match=part):
        ladder(*rungs)


@pytest.mark.parametrize(("bits", "signed"), list(itertools.product((0, 17, -3, True, 2.0, "8", None), (True, False))))
def test_uniform_refuses(bits: object, signed: bool) -> None:
    with pytest.raises(ProbqError, match="1 to 16"):
        uniform(bits, signed)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [1, 6, True, 3.0])
def test_powers_of_two_refuse(bits: object) -> None:
    with pytest.raises(ProbqError, match="2 to 5"):
        powers_of_two(bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [levels, learned])
@pytest.mark.parametrize(
    ("values", "part"),
    [
        ([], "at least one"),
        ([0, math.inf], "finite"),
        ([math.nan], "finite"),
        ([1, 0], "ascending"),
        ([1, 1], "ascending"),
    ],
)
def test_given_levels_refuse(make: object, values: list[float], part: str) -> None:
    with pytest.raises(ProbqError, match=part):
        make(values)  # type: ignore[operator]


@pytest.mark.parametrize(("step", "count"), [(0, 3), (1, 0), (-1, 2)])
def test_grids_refuse(step: int, count: int) -> None:
    with pytest.raises(ProbqError, match="at least 1"):
        Grid(0, step, count)


def test_only_learned_levels_are_learned() -> None:
    assert [book.learned for book in (learned([0, 1]), levels([0, 1]), ternary(), powers_of_two(3))] == [
        True,
        False,
        False,
        False,
    ]
