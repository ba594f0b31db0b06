"""Codebooks: exact rounding, ladders, and every refusal. What all of them keep is in `tests/conformance`."""

import itertools
import math

import pytest
import torch

from probq import ProbqError
from probq.codebooks import Grid, binary, ladder, learned, levels, powers_of_two, ternary, uniform
from probq.codebooks.codebook import half_up


@pytest.mark.parametrize("bits", range(1, 17))
def test_uniform_codebooks_fill_their_width(bits: int) -> None:
    signed, unsigned = uniform(bits), uniform(bits, signed=False)
    assert signed.bits == unsigned.bits == bits
    assert signed.start == -signed.stop
    assert signed.stop == max(1, 2 ** (bits - 1) - 1)
    assert (unsigned.start, unsigned.stop) == (0, 2**bits - 1)
    assert ladder(bits).rungs == (signed,)


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
