"""The integers of a requantization equal exact rational arithmetic."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from probq.integer.lowering.operations.requantize import RoundingTarget, in_two_steps, requantization
from probq.utils.errors import ProbqError

TARGETS = st.builds(
    lambda exponent, book: RoundingTarget(exponent, *book),
    st.integers(-14, 6),
    st.sampled_from([(0, 1, 256), (0, 1, 2), (-7, 1, 15), (-127, 1, 255), (-1, 2, 2), (-1, 1, 3)]),
)


def exact(x: int, exponent: int, divisor: int, target: RoundingTarget, factor: int) -> int:
    """The code by rational arithmetic."""
    u = Fraction(x) * factor * Fraction(2) ** (exponent - target.exponent) / divisor
    code = floor((u - target.start) / target.step + Fraction(1, 2))
    return min(max(code, 0), target.count - 1)


def ties(exponent: int, divisor: int, target: RoundingTarget, bound: int, factor: int) -> list[int]:
    """Accumulators at and beside every rounding boundary within the bound."""
    worth = Fraction(2) ** (target.exponent - exponent) * divisor / factor
    edges = [
        floor((target.start + target.step * (k + Fraction(1, 2))) * worth) for k in range(-1, min(target.count, 9))
    ]
    return [x for edge in edges for x in (edge - 1, edge, edge + 1) if abs(x) <= bound]


@settings(max_examples=400, deadline=None)
@given(
    TARGETS,
    st.integers(-32, 6),
    st.sampled_from([1, 1, 3, 4, 7, 9, 25, 49]),
    st.sampled_from([1, 100, 2**15, 2**24, 2**27, 2**31 - 1]),
    st.sampled_from([1, 1, 5, 16, 24, 29, 31]),
    st.data(),
)
def test_equals_rational_arithmetic(target, exponent, divisor, bound, factor, data):
    try:
        r = requantization(np.array(exponent), divisor, bound, target, np.array(factor))
    except ProbqError:
        assume(False)
    drawn = data.draw(st.lists(st.integers(-bound, bound), min_size=1, max_size=8))
    for x in [*drawn, *ties(exponent, divisor, target, bound, factor), -bound, bound, 0]:
        code = min(max((x * int(r.multiplier) + int(r.add)) >> int(r.shift), 0), target.count - 1)
        assert code == exact(x, exponent, divisor, target, factor)


def test_a_power_of_two_is_one_add_and_one_shift():
    r = requantization(np.array([-6, -9]), 1, 1000, RoundingTarget(-2, 0, 1, 16))
    assert r.multiplier.tolist() == [1, 1]
    assert r.shift.tolist() == [4, 7]
    assert r.add.tolist() == [8, 64]


def test_a_step_that_no_shift_reaches_is_refused():
    with pytest.raises(ProbqError, match="steps of 1 or 2"):
        requantization(np.array(0), 1, 10, RoundingTarget(0, 0, 3, 4))


def test_integers_beyond_62_bits_are_refused():
    with pytest.raises(ProbqError, match="62 bits"):
        requantization(np.array(0), 49, 2**40, RoundingTarget(33, 0, 1, 256))


def test_code_of_a_real_number():
    target = RoundingTarget(-1, 0, 1, 4)
    assert [target.code(v) for v in (-3.0, 0.24, 0.25, 1.0, 9.0)] == [0, 0, 1, 2, 3]
    assert target.bits == 2


@settings(max_examples=400, deadline=None)
@given(
    TARGETS,
    st.integers(-40, -8),
    st.sampled_from([3, 7, 9, 49, 196, 2048, 3 * 2**10]),
    st.sampled_from([2**15, 2**31 - 1, 2**40 - 1]),
    st.data(),
)
def test_a_shift_and_then_a_division_equal_rational_arithmetic(target, exponent, divisor, bound, data):
    try:
        steps = in_two_steps(np.array(exponent), divisor, bound, target)
    except ProbqError:
        assume(False)
    drawn = data.draw(st.lists(st.integers(-bound, bound), min_size=1, max_size=8))
    for x in [*drawn, *ties(exponent, divisor, target, bound, 1), -bound, bound, 0]:
        code = x
        for r in steps:
            assert abs(code * int(r.multiplier)) + abs(int(r.add)) < 2**62
            code = (code * int(r.multiplier) + int(r.add)) >> int(r.shift)
        assert min(max(code, 0), target.count - 1) == exact(x, exponent, divisor, target, 1)


@pytest.mark.parametrize("exponent", [0, -60], ids=["finer than the sum", "beyond 62 bits"])
def test_what_no_shift_makes_small_is_refused(exponent):
    with pytest.raises(ProbqError, match="beyond 62 bits"):
        in_two_steps(np.array(exponent), 49, 2**40 - 1, RoundingTarget(0, 0, 1, 256))
