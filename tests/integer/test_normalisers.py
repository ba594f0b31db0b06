"""Softmax and normalisation of integers keep the error bounds of their docstrings, by exact rational arithmetic."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probq import ProbqError
from probq.integer import Node
from probq.integer.normalisers.meaning import Exponentials, integer_root, log_softmax, normalise, softmax
from probq.integer.normalisers.tables import (
    argument_bits,
    coarse,
    fine,
    least_square,
    logarithms,
    octaves,
    root_bits,
)
from probq.integer.ranges import ranges
from probq.integer.shapes import shape_of


def input_node(shape, low, high):
    return Node("x", "input", (), {"shape": list(shape), "scale": 1.0, "lo": low, "hi": high})


ROWS = st.one_of(
    st.lists(st.integers(-4000, 4000), min_size=1, max_size=12),
    st.lists(st.integers(-(2**21), 2**21 - 1), min_size=1, max_size=12),
    st.builds(lambda top, low, n: [top, *[low] * n], st.integers(0, 16000), st.integers(-3000, 0), st.integers(1, 999)),
)
BITS = 15
E = Exponentials(coarse(), fine(), 24)


def exact_softmax(row):
    """Fractions within 10^-50 of the softmax of `row / 1024`."""
    with localcontext(prec=60):
        e = {x: (Decimal(x - max(row)) / 1024).exp() for x in set(row)}
        total = sum(e[x] for x in row)
        exact = {x: (Fraction(each) / Fraction(total), Fraction(each.ln() - total.ln())) for x, each in e.items()}
    return zip(*(exact[x] for x in row), strict=True)


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_softmax_is_within_its_bound_of_the_exact_one(row):
    found = softmax(np.array(row), E, BITS).tolist()
    for code, p in set(zip(found, next(exact_softmax(row)), strict=True)):
        bound = 3 * (1 + (len(row) - 1) * p) / 2**25 + Fraction(1, 2 ** (BITS + 1))
        assert abs(Fraction(code, 2**BITS) - p) <= bound
    assert abs(sum(found) - 2**BITS) <= len(row) / 2


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_log_softmax_is_within_its_bound_of_the_exact_one(row):
    found = log_softmax(np.array(row), E, octaves(len(row)), logarithms(), 4).tolist()
    for code, log in set(zip(found, list(exact_softmax(row))[1], strict=True)):
        assert abs(Fraction(code, 2**12) - log) <= Fraction(3, 2**12) + Fraction(len(row), 2**23)


def bounded_rows(draw):
    count = draw(st.integers(2, 12))
    bits = argument_bits(count) - 1
    kind = draw(st.sampled_from(["any", "narrow", "one apart"]))
    if kind == "any":
        return draw(st.lists(st.integers(-(2**bits), 2**bits - 1), min_size=count, max_size=count))
    base = draw(st.integers(-(2**bits), 2**bits - 8))
    if kind == "narrow":
        return [base + draw(st.integers(0, 6)) for _ in range(count)]
    return [base + 1, *[base] * (count - 1)]


@settings(max_examples=300, deadline=None)
@given(st.data(), st.booleans(), st.sampled_from([0.0, 1e-12, 1e-5, 0.1]), st.integers(-14, -2))
def test_normalisation_is_within_its_bound_of_the_exact_one(data, centred, eps, exponent):
    row = bounded_rows(data.draw)
    n, root = len(row), root_bits(len(row))
    added = least_square(n, eps, exponent)
    found = normalise(np.array(row), centred, added, root, 12).tolist()
    mean = Fraction(sum(row), n) if centred else Fraction(0)
    square = sum((x - mean) ** 2 for x in row) / n
    total = square + Fraction(eps) / Fraction(4) ** exponent
    r = math.isqrt(int(n**2 * square * 4**root) + added)
    for code, x in zip(found, row, strict=True):
        if total == 0:
            assert code == 0
            continue
        with localcontext(prec=60):
            root_of = Fraction((Decimal(total.numerator) / Decimal(total.denominator)).sqrt())
        z = (x - mean) / root_of
        assert abs(Fraction(code, 2**12) - z) <= Fraction(1, 2**13) + 3 * abs(z) / r


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.integers(0, 2**62 - 1), st.integers(0, 2**31 - 1).map(lambda r: r * r), st.integers(0, 100)))
def test_a_root_is_that_of_python(v):
    for near in {max(v - 1, 0), v, min(v + 1, 2**62 - 1)}:
        assert integer_root(np.array([near]))[0] == math.isqrt(near)


def test_tables_are_those_of_numpy():
    for table, steps in ((coarse(), 32), (fine(), 1024)):
        assert np.array_equal(table, np.floor(2**24 * np.exp(-np.arange(len(table)) / steps) + 0.5))
    assert [coarse()[-1], len(fine())] == [0, 32]
    assert np.array_equal(logarithms(), np.floor(2**12 * np.log1p((np.arange(1024) + 0.5) / 1024) + 0.5))
    assert np.array_equal(octaves(5), np.floor(2**12 * np.log(2) * (np.arange(27) - 24) + 0.5))


@pytest.mark.parametrize("count", [2, 3, 64, 2**12, 2**12 + 1, 2**16, 2**18])
@pytest.mark.parametrize("centred", [True, False])
def test_the_widest_rows_stay_in_62_bits(count, centred):
    """The proven range of the node, whose checks are those on the values; every input is at one end."""
    end = 2 ** (argument_bits(count) - 1)
    attributes = {"centred": centred, "eps": 2**52, "root": root_bits(count), "bits": 12}
    nodes = [input_node((count,), -end, end - 1), Node("n", "normalise", ("x",), attributes)]
    found = ranges(nodes, {"x": (count,), "n": shape_of(nodes[1], [(count,)])})["n"]
    x = np.where(np.arange(count) < count // 2, -end, end - 1)
    for row in (x, np.where(np.arange(count) == 0, end - 1, -end)):
        y = normalise(row, centred, 1, root_bits(count), 12)
        assert found.within(-(2**23), 2**23)
        assert [found.low <= y.min(), y.max() <= found.high] == [True, True]


@pytest.mark.parametrize(
    ("op", "attributes", "tensors", "message"),
    [
        ("softmax", {"bits": 31}, {"coarse": [2**40, 1]}, r"node n \(softmax\): its integers may reach .* axis of 8"),
        ("softmax", {"bits": 32}, {}, "attribute bits must be 0 to 31"),
        ("softmax", {"bits": 15}, {"coarse": [0, 1]}, "that of the maximum is above 0"),
        ("softmax", {"bits": 15}, {"fine": [2, -1]}, "no negative number"),
        ("softmax", {"bits": 15}, {"fine": [2**31], "coarse": [2**31]}, "below 2.62"),
        ("log_softmax", {"factor": 1}, {"coarse": [8], "octaves": [0] * 6, "logarithms": [0]}, "7 bits.* are 6"),
        ("normalise", {"centred": True, "eps": 1, "root": 31, "bits": 31}, {}, "(62 bits); use narrower widths"),
        ("normalise", {"centred": True, "eps": 0, "root": 1, "bits": 12}, {}, "attribute eps must be 1 to 2"),
    ],
)  # fmt: skip
def test_what_could_leave_62_bits_is_refused_with_node_and_limit(op, attributes, tensors, message):
    if op != "normalise":
        tensors, attributes = {"coarse": [1], "fine": [1]} | tensors, attributes | {"dropped": 0}
    tensors = {name: np.array(entries) for name, entries in tensors.items()}
    with pytest.raises(ProbqError, match=message.replace("(62 bits)", r"\(62 bits\)")):
        ranges([input_node((8,), -100, 100), Node("n", op, ("x",), attributes, tensors)], {"x": (8,), "n": (8,)})
