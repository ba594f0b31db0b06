"""Where float32 rounds as the integers do, by trying every accumulator."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from probq.export.onnx.float_rounding import FloatForm, IntegerRounding, float_form, floored_form, misplaced

REACH = 700


def codes(rule, accumulator):
    """The rule in Python integers."""
    parts = zip(rule.multiplier.tolist(), rule.add.tolist(), rule.shift.tolist(), accumulator.tolist(), strict=True)
    return [[min(max((x * m + a) >> n, rule.lo), rule.hi) for x in row] for m, a, n, row in parts]


def in_float(form, rule, accumulator):
    """What ONNX Runtime does, operation by operation: float32 of int32, product, saturation, nearest, zero, clip."""
    product = (accumulator + form.add[:, None]).astype(np.int32).astype(np.float32) * form.scale[:, None]
    octet = np.rint(np.clip(product, -form.offset, 255 - form.offset)).astype(int) + form.offset
    return np.clip(octet, rule.lo + form.zero, rule.hi + form.zero) - form.zero


@st.composite
def rules(draw):
    """A rule of two outputs, with shifts up to where float32 has no digit to spare, and the accumulators around it."""
    bits, signed = draw(st.integers(1, 8)), draw(st.booleans())
    lo, hi = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    numbers = lambda low, high: np.array([draw(st.integers(low, high)) for _ in "ab"])  # noqa: E731
    multiplier, shift = numbers(1, draw(st.sampled_from([1, 2, 255]))), numbers(0, draw(st.sampled_from([4, 12, 20])))
    half = (1 << shift) >> 1
    add = half if draw(st.booleans()) else half + numbers(-(10**6), 10**6)
    centre = ((draw(st.integers(lo, hi)) << shift) - add) // multiplier
    return IntegerRounding(multiplier, add, shift, lo, hi), centre - REACH, centre + REACH


@given(rules())
@settings(max_examples=100)
def test_what_is_certified_is_right_for_every_accumulator(drawn):
    rule, low, high = drawn
    form = float_form(rule, low, high)
    event("certified" if isinstance(form, FloatForm) else "refused")
    if isinstance(form, FloatForm):
        every = np.stack([np.arange(a, b + 1) for a, b in zip(low, high, strict=True)])
        assert np.array_equal(in_float(form, rule, every), codes(rule, every))


@given(rules(), st.sampled_from([-1, 0, 1]), st.integers(-40, 40), st.booleans())
@settings(max_examples=100)
def test_a_form_is_refused_exactly_where_it_is_wrong(drawn, more, change, offset):
    rule, low, high = drawn
    zero = max(-rule.lo, 0)
    add = rule.add - ((1 << rule.shift) >> 1) + ((0 if offset else zero) << rule.shift)
    scale = (rule.multiplier / 2.0**rule.shift * (1 + change * 2.0**-22)).astype(np.float32)
    form = FloatForm(scale, add // rule.multiplier + more, zero, zero if offset else 0)
    every = np.stack([np.arange(a, b + 1) for a, b in zip(low, high, strict=True)])
    wrong = (in_float(form, rule, every) != codes(rule, every)).any(1)
    event(f"wrong: {wrong.any()}")
    assert (misplaced(rule, form, low, high) >= 0).tolist() == wrong.tolist()


@given(rules())
@settings(max_examples=100)
def test_a_floor_that_is_certified_is_right_for_every_accumulator(drawn):
    """The floor of the product and the sum, each rounded to float32; what is refused is wrong somewhere."""
    rule, low, high = drawn
    m, a, n = rule.multiplier, rule.add, rule.shift
    every = np.stack([np.arange(a, b + 1) for a, b in zip(low, high, strict=True)])
    scale, add = ((part / 2.0**n).astype(np.float32)[:, None] for part in (m, a))
    found = np.clip(np.floor(every.astype(np.float32) * scale + add), rule.lo, rule.hi).astype(int)
    form = floored_form(rule, low, high)
    event("certified" if form else "refused")
    assert np.array_equal(found, codes(rule, every)) == (form is not None)


@pytest.mark.parametrize("multiplier", range(1, 32))
def test_a_floor_is_right_where_rounding_to_nearest_is_not(multiplier):
    """Products of 24 bits at most are exact, and half more is too: `2^8 2^16`."""
    rule, reach = one(multiplier, 2**15, 16, 0, 255), np.array([2**21])
    assert floored_form(rule, -reach, reach) is not None
    if multiplier == 31:
        assert isinstance(float_form(rule, -reach, reach), str)


def one(multiplier, add, shift, lo, hi):
    return IntegerRounding(*(np.array([number]) for number in (multiplier, add, shift)), lo, hi)


@pytest.mark.parametrize("hi", [1, 15, 255])
def test_every_multiplier_of_8_bits_behind_a_relu(hi):
    """Certified where `(hi + 1) 2^n <= 2^22`, whatever accumulators there are up to 2^23."""
    multiplier, shift = np.arange(1, 256), 22 - (hi + 1).bit_length() + 1
    rule = IntegerRounding(multiplier, np.full(255, 1 << shift - 1), np.full(255, shift), 0, hi)
    assert isinstance(float_form(rule, np.full(255, -(2**23)), np.full(255, 2**23)), FloatForm)


def test_a_tie_goes_up():
    form = float_form(one(1, 2, 2, 0, 7), np.array([-40]), np.array([40]))
    assert form.level(np.array([[1, 2, 6, 10]])).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("rule", "reach", "message"),
    [
        (one(0, 1, 1, 0, 7), 10, "too many bits"),
        (one(2**24, 1, 1, 0, 7), 10, "too many bits"),
        (one(1, 2**60, 1, 0, 7), 10, "too many bits"),
        (one(1, 0, 41, 0, 7), 10, "too many bits"),
        (one(1, 2**16, 17, 0, 255), 2**25, "of output 0 starts at another accumulator"),
        (one(1, 1, 1, 0, 3), 2**31, "code"),
    ],
)
def test_what_float32_cannot_round_is_refused(rule, reach, message):
    found = float_form(rule, np.array([-reach]), np.array([reach]))
    assert isinstance(found, str)
    assert message in found


def test_what_no_accumulator_reaches_does_not_count():
    rule = one(1, 2**16, 17, 0, 255)
    assert isinstance(float_form(rule, np.array([0]), np.array([2**23])), FloatForm)
    outputs = IntegerRounding(*(np.repeat(tensor, 2) for tensor in (rule.multiplier, rule.add, rule.shift)), 0, 255)
    assert isinstance(float_form(outputs, np.array([0, 0]), np.array([2**23, 2**25])), str)
    assert isinstance(float_form(replace(rule, hi=60), np.array([0]), np.array([2**25])), FloatForm)
