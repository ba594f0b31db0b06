"""Quotients of integers are those of exact rational numbers, rounded half up."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probq import ProbqError
from probq.integer import Node
from probq.integer.interpreter import evaluate
from probq.integer.normalisers.quotient import quotient, quotient_ends
from probq.integer.shapes import shape_of

CODES = st.integers(-(2**17), 2**17 - 1)


@settings(max_examples=300, deadline=None)
@given(CODES, CODES, st.integers(0, 31), st.integers(0, 31))
def test_a_quotient_is_the_nearest_integer_and_a_divisor_of_0_counts_as_1(x, d, up, down):
    exact = Fraction(x * 2**up, (d or 1) * 2**down)
    found = quotient(np.array([x]), np.array([d]), up, down)
    assert found.tolist() == [math.floor(exact + Fraction(1, 2))]


def test_the_ends_are_those_of_all_quotients():
    every = np.arange(-6, 7)
    for lows in ((-6, -2), (-3, 4), (0, 6)):
        for divisors in ((-5, -1), (-2, 3), (0, 4), (1, 4)):
            xs, ds = (every[(every >= low) & (every <= high)] for low, high in (lows, divisors))
            found = quotient(xs[:, None], ds[None], 1, 0)
            low, high = quotient_ends(lows, divisors, 1)
            assert low <= found.min() <= found.max() <= high


def test_numbers_beyond_62_bits_are_refused_and_so_are_values_of_other_axes():
    with pytest.raises(ProbqError, match="62 bits"):
        quotient(np.array([2**31]), np.array([1]), 31, 0)
    node = Node("q", "quotient", ("x", "d"), {"up": 0, "down": 0, "lo": -9, "hi": 9}, {})
    assert evaluate(node, np.array([[40, -7]]), np.array([[2]])).tolist() == [[9, -3]]
    with pytest.raises(ProbqError, match="divisors of as many axes"):
        evaluate(node, np.ones((2, 3, 4), np.int64), np.ones((2, 4), np.int64))
    with pytest.raises(ProbqError, match="divisors of as many axes"):
        shape_of(node, [(3, 4), (4,)])
