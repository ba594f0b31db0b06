"""Bit packing: bytes worked out by hand, an oracle of Python's big integers, and every refusal."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probq.integer.packing import LARGEST_LEVEL, Levels, Packing, bits_of, pack, size_in_bits, smallest, unpack
from probq.utils.errors import ProbqError


def one(levels: Levels) -> Packing:
    return Packing((levels,), np.array(0))


# (values, packing, bytes): codes are written least significant bit first
BY_HAND = {
    "four 2-bit codes, one byte": ([0, 1, 2, 3], one(range(4)), [0b11_10_01_00]),
    "an offset is not stored": ([-8, -7, -6, -5], one(range(-8, -4)), [0b11_10_01_00]),
    "binary -1, +1": ([1, -1, 1, 1], one(range(-1, 2, 2)), [0b1101]),
    "ternary takes two bits": ([-1, 0, 1], one(range(-1, 2)), [0b10_01_00]),
    "powers of two by their index": ([-4, 1, 4], one((-4, -2, -1, 0, 1, 2, 4)), [0b10_100_000, 0b1]),
    "a code across two bytes": ([0, 31, 0], one(range(32)), [0b1110_0000, 0b11]),
    "sixteen bits, low byte first": ([0x1234], one(range(2**16)), [0x34, 0x12]),
    "zero bits": ([5, 5, 5], one((5,)), []),
    "nothing": ([], one(range(4)), []),
    "a rung per row: 0, 1 and 3 bits": (
        [[0, 0], [1, -1], [5, 2]],
        Packing((range(1), range(-1, 2, 2), range(8)), np.array([[0], [1], [2]])),
        [0b010_101_0_1],
    ),
    "a rung per value": ([3, 0, 1], Packing((range(4), range(1), range(2)), np.array([0, 1, 2])), [0b1_11]),
}


@pytest.mark.parametrize(("values", "packing", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_bytes_by_hand(values: list[int], packing: Packing, expected: list[int]) -> None:
    values = np.array(values, np.int64)
    blob = pack(values, packing)
    assert blob.dtype == np.uint8
    assert blob.tolist() == expected
    assert -(-size_in_bits(values.shape, packing) // 8) == len(expected)
    back = unpack(blob, values.shape, packing)
    assert back.dtype == np.int64
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize(("count", "bits"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (256, 8), (257, 9), (2**40, 40)])
def test_bits_of(count: int, bits: int) -> None:
    assert bits_of(range(count)) == bits
    if count < 1000:
        assert bits_of(tuple(range(count))) == math.ceil(math.log2(count))


def big_integer_pack(values: np.ndarray, packing: Packing) -> bytes:
    """The same bytes from one Python integer: each code added at its offset."""
    stream = offset = 0
    for value, rung in zip(values.flat, np.broadcast_to(packing.rung, values.shape).flat, strict=True):
        levels = packing.codebooks[rung]
        stream |= list(levels).index(value) << offset
        offset += math.ceil(math.log2(len(levels)))
    return stream.to_bytes(-(-offset // 8), "little")


LEVELS = st.one_of(
    st.builds(lambda a, n, s: range(a, a + n * s, s), st.integers(-300, 300), st.integers(1, 300), st.integers(1, 9)),
    st.sets(st.integers(-(2**40), 2**40), min_size=1, max_size=20).map(lambda levels: tuple(sorted(levels))),
)


@st.composite
def packed_tensors(draw: st.DrawFn) -> tuple[np.ndarray, Packing]:
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    codebooks = tuple(draw(st.lists(LEVELS, min_size=1, max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rung_shape = [draw(st.sampled_from([1, size])) for size in shape][draw(st.integers(0, len(shape))) :]
    rung = rng.integers(0, len(codebooks), rung_shape)
    values = [int(codebooks[r][rng.integers(len(codebooks[r]))]) for r in np.broadcast_to(rung, shape).reshape(-1)]
    return np.array(values, np.int64).reshape(shape), Packing(codebooks, rung)


@given(packed_tensors())
@settings(deadline=None, max_examples=200)
def test_round_trip_and_bytes_of_a_big_integer(example: tuple[np.ndarray, Packing]) -> None:
    values, packing = example
    blob = pack(values, packing)
    assert blob.tobytes() == big_integer_pack(values, packing)
    np.testing.assert_array_equal(unpack(blob, values.shape, packing), values)


@given(st.lists(st.integers(-(2**60), 2**60), min_size=1, max_size=9))
@settings(deadline=None)
def test_smallest_covers_exactly(values: list[int]) -> None:
    packing = smallest(values)
    assert packing.codebooks == (range(min(values), max(values) + 1),)
    np.testing.assert_array_equal(unpack(pack(values, packing), (len(values),), packing), values)


def test_smallest_of_nothing_takes_no_bits() -> None:
    assert size_in_bits((0, 3), smallest(np.zeros((0, 3), np.int64))) == 0


def test_extreme_levels() -> None:
    packing = one((-LARGEST_LEVEL, 0, LARGEST_LEVEL))
    values = np.array([LARGEST_LEVEL, -LARGEST_LEVEL])
    np.testing.assert_array_equal(unpack(pack(values, packing), (2,), packing), values)
    wide = one(range(-LARGEST_LEVEL, LARGEST_LEVEL + 1))
    np.testing.assert_array_equal(unpack(pack(values, wide), (2,), wide), values)


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ([4], range(4)), ([-1], range(4)), ([0], range(-1, 2, 2)), ([3], (-4, 0, 4)), ([5], (-4, 0, 4)),
        ([2**63 - 1], range(-8, 8)), ([-(2**63)], (0, 1)), ([-(2**63)], range(LARGEST_LEVEL)), ([1], (0,)),
    ],
)  # fmt: skip
def test_value_off_its_codebook(values: list[int], levels: Levels) -> None:
    with pytest.raises(ProbqError, match=f"{values[0]} is not a level"):
        pack(values, one(levels))


def test_value_on_another_rungs_codebook_only() -> None:
    with pytest.raises(ProbqError, match="2 is not a level"):
        pack([2, 2], Packing((range(4), range(2)), np.array([0, 1])))


@pytest.mark.parametrize(
    ("codebooks", "rung", "message"),
    [
        ((), 0, "at least one codebook"),
        (((),), 0, "at least one level"),
        ((range(0),), 0, "at least one level"),
        (((1, 0),), 0, "ascend"),
        (((1, 1),), 0, "ascend"),
        ((range(4, 0, -1),), 0, "ascend"),
        (((0.0, 1.0),), 0, "Python integers"),
        (([0, 1],), 0, "range or a tuple"),
        (((0, 2**62),), 0, r"2\^61"),
        ((range(-(2**70), 1),), 0, r"2\^61"),
        ((range(2),), 1, "between 0 and 0"),
        ((range(2),), -1, "between 0 and 0"),
        ((range(2),), 0.0, "rungs are integers"),
    ],
)
def test_refused_packings(codebooks: tuple[Levels, ...], rung: float, message: str) -> None:
    with pytest.raises(ProbqError, match=message):
        Packing(codebooks, np.array(rung))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (4, 1)])
def test_rungs_that_do_not_broadcast(shape: tuple[int, ...]) -> None:
    packing = Packing((range(2), range(4)), np.zeros((4, 2), int))
    with pytest.raises(ProbqError, match="do not broadcast"):
        pack(np.zeros(shape, int), packing)
    with pytest.raises(ProbqError, match="do not broadcast"):
        unpack(np.zeros(1, np.uint8), shape, packing)


def test_only_integers_are_packed() -> None:
    with pytest.raises(ProbqError, match="only integers"):
        pack([0.5], one(range(4)))
    with pytest.raises(ProbqError, match="within"):
        pack(np.array([2**63], np.uint64), one(range(4)))


@pytest.mark.parametrize("blob", [[], [0], [0, 0, 0]])
def test_blob_of_wrong_length(blob: list[int]) -> None:
    with pytest.raises(ProbqError, match="2 hold 9 bits"):
        unpack(blob, (3,), one(range(8)))


def test_spare_bits_and_codes_without_level() -> None:
    with pytest.raises(ProbqError, match="spare bits"):
        unpack([0b1000_0000], (2,), one(range(8)))
    for levels in (range(3), (0, 1, 5)):
        with pytest.raises(ProbqError, match="code 3 has no level"):
            unpack([0b11], (1,), one(levels))


def test_zero_bits_take_no_memory() -> None:
    rows = unpack([], (2, 2**30), Packing((range(1), range(7, 8)), np.array([[0], [1]])))
    assert rows.shape == (2, 2**30)
    assert rows[:, -1].tolist() == [0, 7]


def test_large_mixed_tensor_is_vectorised() -> None:
    rng = np.random.default_rng(0)
    codebooks: tuple[Levels, ...] = (range(1), range(-1, 2, 2), range(-2, 2), range(-8, 8), range(-128, 128))
    packing = Packing(codebooks, rng.integers(0, 5, (1000, 1000)))
    values = np.choose(packing.rung, [rng.choice(list(levels), packing.rung.shape) for levels in codebooks])
    start = time.process_time()
    np.testing.assert_array_equal(unpack(pack(values, packing), values.shape, packing), values)
    assert time.process_time() - start < 20  # a Python loop over 3 million bits takes longer; usually 0.3 s
