"""Every operation of the interpreter against torch.nn.functional in float64, or against arithmetic by hand."""

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from probq import IntegerModel
from probq.integer import Node
from probq.integer.interpreter import OPERATIONS, evaluate, quantize
from probq.integer.operations import SIGNATURES
from probq.utils.errors import ProbqError

CONV = (F.conv1d, F.conv2d, F.conv3d)
CONV_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
MAX_POOL = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
quick = settings(deadline=None, max_examples=60)


def node(op: str, inputs: int = 1, tensors: dict[str, Any] | None = None, **attributes: Any) -> Node:
    return Node(op, op, tuple("abcdef"[:inputs]), attributes, {k: np.array(v) for k, v in (tensors or {}).items()})


def integers(draw: st.DrawFn, *shape: int, largest: int = 50) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.integers(-largest, largest + 1, shape)


def real(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).double()


def assert_same(ours: np.ndarray, theirs: torch.Tensor) -> None:
    assert ours.dtype == np.int64
    assert ours.shape == tuple(theirs.shape)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_every_operation_has_a_signature() -> None:
    assert set(OPERATIONS) == set(SIGNATURES)


@given(st.data())
@quick
def test_linear(data: st.DataObject) -> None:
    draw = data.draw
    i, o = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    largest = draw(st.sampled_from([5, 2**11, 2**20]))  # float32 at first, then float64
    x = integers(draw, draw(st.integers(0, 3)), *draw(st.lists(st.integers(1, 3), max_size=2)), i, largest=largest)
    weight, bias = integers(draw, o, i, largest=largest), integers(draw, o, largest=largest)
    ours = evaluate(node("linear", tensors={"weight": weight, "bias": bias}), x)
    assert_same(ours, F.linear(real(x), real(weight), real(bias)))


@given(st.data())
@quick
def test_conv(data: st.DataObject) -> None:
    draw, n = data.draw, data.draw(st.integers(1, 3))
    each = lambda lo, hi: draw(st.lists(st.integers(lo, hi), min_size=n, max_size=n))  # noqa: E731
    groups, kernel, stride, dilation, low, high = draw(st.integers(1, 3)), each(1, 3), each(1, 3), each(1, 2), *(
        each(0, 2), each(0, 2)
    )  # fmt: skip
    size = [d * (k - 1) + 1 + extra for d, k, extra in zip(dilation, kernel, each(0, 4), strict=True)]
    i, o = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    largest = draw(st.sampled_from([5, 2**20]))
    x = integers(draw, draw(st.integers(1, 3)), groups * i, *size, largest=largest)
    weight, bias = integers(draw, groups * o, i, *kernel, largest=largest), integers(draw, groups * o)
    pairs = list(zip(low, high, strict=True))
    conv = node(
        "conv", tensors={"weight": weight, "bias": bias}, stride=stride, padding=pairs, dilation=dilation,
        groups=groups, transposed=False,
    )  # fmt: skip
    padded = F.pad(real(x), [end for pair in pairs[::-1] for end in pair])
    theirs = CONV[n - 1](padded, real(weight), real(bias), stride, 0, dilation, groups)
    assert_same(evaluate(conv, x), theirs)


@given(st.data())
@quick
def test_conv_transposed(data: st.DataObject) -> None:
    draw, n = data.draw, data.draw(st.integers(1, 3))
    each = lambda lo, hi: draw(st.lists(st.integers(lo, hi), min_size=n, max_size=n))  # noqa: E731
    groups, kernel, stride, dilation = draw(st.integers(1, 3)), each(1, 3), each(1, 3), each(1, 3)
    padding = [draw(st.integers(0, d * (k - 1) + 1)) for d, k in zip(dilation, kernel, strict=True)]
    extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    size = each(2, 4)
    out = [
        (m - 1) * s - 2 * p + d * (k - 1) + e + 1
        for m, s, p, d, k, e in zip(size, stride, padding, dilation, kernel, extra, strict=True)
    ]
    i, o = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    x, weight = integers(draw, 2, groups * i, *size), integers(draw, groups * i, o, *kernel)
    bias = integers(draw, groups * o)
    conv = node(
        "conv", tensors={"weight": weight, "bias": bias}, stride=stride, padding=[[p, p] for p in padding],
        dilation=dilation, groups=groups, transposed=True, output_padding=extra,
    )  # fmt: skip
    if min(out) < 1:
        with pytest.raises(ProbqError):
            evaluate(conv, x)
        return
    theirs = CONV_TRANSPOSED[n - 1](real(x), real(weight), real(bias), stride, padding, extra, groups, dilation)
    assert_same(evaluate(conv, x), theirs)


def test_conv_in_several_blocks() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.integers(-9, 9, (5, 64, 64, 64)), rng.integers(-9, 9, (3, 64, 3, 3))
    conv = node(
        "conv", tensors={"weight": weight, "bias": [1, 2, 3]}, stride=[1, 1], padding=[[1, 1]] * 2, dilation=[1, 1],
        groups=1, transposed=False,
    )  # fmt: skip
    assert_same(evaluate(conv, x), F.conv2d(real(x), real(weight), torch.tensor([1.0, 2, 3]).double(), padding=1))


@given(st.data())
@quick
def test_max_pool(data: st.DataObject) -> None:
    draw, n = data.draw, data.draw(st.integers(1, 3))
    each = lambda lo, hi: draw(st.lists(st.integers(lo, hi), min_size=n, max_size=n))  # noqa: E731
    kernel, stride, dilation, ceil = each(1, 3), each(1, 3), each(1, 2), draw(st.booleans())
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    size = [d * (k - 1) + 1 + extra for d, k, extra in zip(dilation, kernel, each(0, 5), strict=True)]
    x = integers(draw, draw(st.integers(1, 2)), 2, *size)
    pairs = [[p, p] for p in padding]
    pool = node("max_pool", kernel=kernel, stride=stride, padding=pairs, dilation=dilation, ceil_mode=ceil)
    theirs = MAX_POOL[n - 1](real(x), kernel, stride, padding, dilation, ceil)
    if theirs.isinf().any():
        with pytest.raises(ProbqError, match="nothing but padding"):
            evaluate(pool, x)
    else:
        assert_same(evaluate(pool, x), theirs)


def test_max_pool_padding_never_wins() -> None:
    pool = node("max_pool", kernel=[2], stride=[2], padding=[[1, 0]], dilation=[1], ceil_mode=False)
    assert evaluate(pool, np.array([[[-5, -3, -4]]])).tolist() == [[[-5, -3]]]


def test_max_pool_that_sees_only_padding_is_refused() -> None:
    """By the interpreter, and before anything runs by the model that holds it."""
    for length, padding, dilation in ((4, [2, 2], 1), (1, [1, 1], 2), (4, [0, 3], 1)):
        options = {"kernel": [2], "stride": [1], "padding": [padding], "dilation": [dilation], "ceil_mode": False}
        pool = Node("pool", "max_pool", ("x",), options)
        with pytest.raises(ProbqError, match="nothing but padding"):
            evaluate(pool, np.ones((1, 1, length), int))
        x = Node("x", "input", attributes={"shape": [1, length], "scale": 1.0, "lo": 0, "hi": 3})
        with pytest.raises(ProbqError, match="nothing but padding"):
            IntegerModel([x, pool], "pool", 1.0)


@given(st.data())
@quick
def test_sum_pool(data: st.DataObject) -> None:
    draw, n = data.draw, data.draw(st.integers(1, 3))
    each = lambda lo, hi: draw(st.lists(st.integers(lo, hi), min_size=n, max_size=n))  # noqa: E731
    kernel, stride, low, high = each(1, 3), each(1, 3), each(0, 2), each(0, 2)
    x = integers(draw, 2, 3, *[k + extra for k, extra in zip(kernel, each(0, 4), strict=True)])
    pairs = list(zip(low, high, strict=True))
    padded = F.pad(real(x), [end for pair in pairs[::-1] for end in pair])
    ones = torch.ones(3, 1, *kernel).double()  # a depthwise convolution with ones
    pool = node("sum_pool", kernel=kernel, stride=stride, padding=pairs)
    assert_same(evaluate(pool, x), CONV[n - 1](padded, ones, None, stride, groups=3))


@given(
    st.integers(-(2**31), 2**31), st.integers(-(2**20), 2**20), st.integers(-(2**40), 2**40), st.integers(0, 62),
    st.integers(-(2**20), 0), st.integers(0, 2**20),
)  # fmt: skip
@quick
def test_requantize_by_fractions(x: int, multiplier: int, add: int, shift: int, lo: int, hi: int) -> None:
    requantize = node("requantize", tensors={"multiplier": multiplier, "add": add, "shift": shift}, lo=lo, hi=hi)
    expected = min(max((Fraction(x * multiplier + add) / 2**shift).__floor__(), lo), hi)
    assert evaluate(requantize, np.array([[x]])).tolist() == [[expected]]


def test_requantize_rounds_half_up_per_channel() -> None:
    tensors = {"multiplier": [[1], [3]], "add": [[1], [2]], "shift": [[1], [2]]}
    requantize = node("requantize", tensors=tensors, lo=-100, hi=3)
    x = np.array([[[-3, -1, 1, 9], [-2, 2, 6, 0]]])  # u = x / 2, then u = 3 x / 4: ties at every odd half
    assert evaluate(requantize, x).tolist() == [[[-1, 0, 1, 3], [-1, 2, 3, 0]]]
    assert x.tolist() == [[[-3, -1, 1, 9], [-2, 2, 6, 0]]]


def test_elementwise() -> None:
    x = np.array([[[1, -2], [3, 4]]])
    assert evaluate(node("multiply", tensors={"multiplier": [2, -1]}), x).tolist() == [[[2, 2], [6, -4]]]
    assert evaluate(node("clip", lo=0, hi=None), x).tolist() == [[[1, 0], [3, 4]]]
    assert evaluate(node("clip", lo=None, hi=3), x).tolist() == [[[1, -2], [3, 3]]]
    assert evaluate(node("clip", lo=None, hi=None), x).tolist() == x.tolist()
    weight = np.arange(6).reshape(3, 2)
    assert evaluate(node("embedding", tensors={"weight": weight}), np.array([[2, 0]])).tolist() == [[[4, 5], [0, 1]]]


@pytest.mark.parametrize("axes", [[0], [1, 2], [-1], [0, 1, 2]])
@pytest.mark.parametrize("keepdims", [False, True])
def test_sum(axes: list[int], keepdims: bool) -> None:
    x = np.random.default_rng(0).integers(-9, 9, (2, 3, 4, 5))
    with_batch = [axis + 1 if axis >= 0 else axis for axis in axes]
    assert_same(evaluate(node("sum", axes=axes, keepdims=keepdims), x), real(x).sum(with_batch, keepdim=keepdims))


def test_shapes() -> None:
    x = np.arange(24).reshape(2, 3, 4)
    assert_same(evaluate(node("reshape", shape=[2, 6]), x), real(x).reshape(2, 2, 6))
    assert evaluate(node("reshape", shape=[2, 6]), x[:0]).shape == (0, 2, 6)
    assert_same(evaluate(node("permute", axes=[1, 0]), x), real(x).permute(0, 2, 1))
    for axis in (0, 1, -1):
        both = evaluate(node("concat", 2, axis=axis), x, x)
        assert_same(both, torch.cat([real(x), real(x)], axis + 1 if axis >= 0 else axis))


def test_moves() -> None:
    x = np.arange(-12, 12).reshape(2, 3, 4)
    twice = evaluate(node("repeat", factors=[2, 3]), x)
    assert_same(twice, torch.nn.functional.interpolate(real(x)[:, None], scale_factor=(2, 3))[:, 0])
    padded = evaluate(node("pad", padding=[[0, 2], [1, 0]]), x)
    assert_same(padded, torch.nn.functional.pad(real(x), (1, 0, 0, 2)))
    for axis in (1, -1):
        assert_same(evaluate(node("slice", axis=axis, start=1, stop=4, step=2), x), real(x)[:, :, 1:4:2])


def test_choices() -> None:
    """By hand; a mask of fewer axes stands behind the batch, and the first of equal numbers is found."""
    x, y = np.arange(12).reshape(2, 2, 3), -np.ones((2, 1, 3), int)
    mask = np.array([[0, 1, 7], [1, 0, 0]])
    found = evaluate(Node("n", "where", ("m", "x", "y")), mask, x, y)
    assert found.tolist() == [[[-1, 1, 2], [-1, 4, 5]], [[6, -1, -1], [9, -1, -1]]]
    ties = np.array([[[1, 5, 5], [7, 0, 7]]])
    assert evaluate(Node("n", "argmax", ("x",), {"axis": 1}), ties).tolist() == [[1, 0]]
    assert evaluate(Node("n", "argmax", ("x",), {"axis": -2}), ties).tolist() == [[1, 0, 1]]


def test_table() -> None:
    x = np.array([[-2, 1], [0, -1]])
    assert evaluate(node("table", tensors={"table": [7, 5, 3, 9]}, first=-2), x).tolist() == [[7, 9], [3, 5]]
    for first in (-1, -6):
        with pytest.raises(ProbqError, match="leave the range"):
            evaluate(node("table", tensors={"table": [7, 5, 3, 9]}, first=first), x)
    with pytest.raises(ProbqError, match="a table has 1 to 65,536 entries, not 0"):
        node("table", tensors={"table": np.zeros(0, int)}, first=0)


@pytest.mark.parametrize(
    ("a", "b"), [((3, 4), (3, 4)), ((3, 4), (3, 1)), ((4,), (3, 4)), ((2, 3, 4), (4,)), ((), (2,))]
)
def test_add_broadcasts_behind_the_batch(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(-9, 9, (2, *a)), rng.integers(-9, 9, (2, *b))
    theirs = torch.vmap(torch.add)(real(x), real(y))
    assert_same(evaluate(node("add", 2), x, y), theirs)


TENSOR = {"weight": [[1, 2]], "bias": [0]}
MISFITS = {
    "features": (node("linear", tensors=TENSOR), (2, 3)),
    "no features": (node("linear", tensors=TENSOR), (1,)),
    "reshape": (node("reshape", shape=[5]), (2, 4)),
    "axis": (node("sum", axes=[2], keepdims=False), (2, 3, 4)),
    "axis before the batch": (node("sum", axes=[-3], keepdims=False), (2, 3, 4)),
    "permute": (node("permute", axes=[0]), (2, 3, 4)),
    "multiplier with more axes": (node("multiply", tensors={"multiplier": [[1]]}), (2, 3)),
    "multiplier that would widen": (node("multiply", tensors={"multiplier": [1, 2]}), (2, 1)),
    "pool over the batch": (node("sum_pool", kernel=[1, 1], stride=[1, 1], padding=[[0, 0]] * 2), (2, 3)),
    "pool longer than the value": (node("sum_pool", kernel=[4], stride=[1], padding=[[0, 0]]), (2, 3)),
    "factors of more axes": (node("repeat", factors=[1, 1]), (2, 3)),
    "padding of more axes": (node("pad", padding=[[0, 0]] * 2), (2, 3)),
    "slice beyond the end": (node("slice", axis=0, start=1, stop=4, step=1), (2, 3)),
    "slice of nothing": (node("slice", axis=0, start=2, stop=2, step=1), (2, 3)),
    "pool of more axes": (node("sum_pool", kernel=[1] * 4, stride=[1] * 4, padding=[[0, 0]] * 4), (2, 3)),
}


@pytest.mark.parametrize(("misfit", "shape"), MISFITS.values(), ids=MISFITS)
def test_misfits_name_the_node(misfit: Node, shape: tuple[int, ...]) -> None:
    with pytest.raises(ProbqError, match=f"node {misfit.name} "):
        evaluate(misfit, np.zeros(shape, np.int64))


def test_conv_misfits() -> None:
    conv = node(
        "conv", tensors={"weight": np.ones((2, 3, 1, 1), int), "bias": [0, 0]}, stride=[1, 1], padding=[[0, 0]] * 2,
        dilation=[1, 1], groups=1, transposed=False,
    )  # fmt: skip
    for shape in [(1, 2, 4, 4), (1, 3, 4), (1, 3, 0, 4)]:
        with pytest.raises(ProbqError, match="node conv"):
            evaluate(conv, np.ones(shape, np.int64))


def test_sums_beyond_exact_arithmetic_are_refused() -> None:
    linear = node("linear", tensors={"weight": [[2**22, 2**22]], "bias": [0]})
    assert evaluate(linear, np.array([[2**29, 2**29 - 1]])).tolist() == [[2**52 - 2**22]]
    with pytest.raises(ProbqError, match=r"2\^53"):
        evaluate(linear, np.array([[2**30, 2**30]]))
    with pytest.raises(ProbqError, match=r"2\^53"):
        evaluate(node("linear", tensors={"weight": [[1]], "bias": [2**53]}), np.array([[1]]))


def test_float32_is_used_below_its_exact_integers_only() -> None:
    linear = node("linear", tensors={"weight": [[1, 1]], "bias": [0]})
    for total in (2**24 - 1, 2**24, 2**24 + 1, 2**25 + 3):
        assert evaluate(linear, np.array([[total - 1, 1]])).tolist() == [[total]]


def test_int64_overflow_is_refused() -> None:
    big = np.array([[2**40, -(2**40)]])
    cases = [
        (node("multiply", tensors={"multiplier": 2**23}), [big]),
        (node("requantize", tensors={"multiplier": 2**23, "add": 0, "shift": 1}, lo=0, hi=1), [big]),
        (node("requantize", tensors={"multiplier": 3, "add": 2**61, "shift": 1}, lo=0, hi=1), [big * 2**21]),
        (node("add", 2), [big * 2**22, big * 2**22]),
        (node("sum", axes=[0], keepdims=False), [big * 2**22]),
        (node("sum_pool", kernel=[2], stride=[1], padding=[[0, 0]]), [big * 2**22]),
    ]
    for case, values in cases:
        with pytest.raises(ProbqError, match="int64"):
            evaluate(case, *values)


def test_shifts_and_indices_outside_their_range() -> None:
    for shift in (-1, 63):
        with pytest.raises(ProbqError, match=r"0 \.\. 62"):
            evaluate(
                node("requantize", tensors={"multiplier": 1, "add": 0, "shift": shift}, lo=0, hi=1),
                np.eye(1, dtype=int),
            )
    for index in (-1, 3):
        with pytest.raises(ProbqError, match=r"0 \.\. 2"):
            evaluate(node("embedding", tensors={"weight": np.eye(3, dtype=int)}), np.array([[index]]))


def image(scale: float = 1.0, lo: int = -(2**40), hi: int = 2**40, shape: tuple[int, ...] = (1,)) -> Node:
    return node("input", 0, shape=list(shape), scale=scale, lo=lo, hi=hi)


@given(
    st.floats(allow_nan=False, allow_infinity=False), st.integers(-30, 30), st.integers(-300, 0), st.integers(0, 300)
)
@settings(deadline=None, max_examples=300)
def test_quantize_by_fractions(x: float, exponent: int, lo: int, hi: int) -> None:
    expected = (Fraction(x) / Fraction(2) ** exponent + Fraction(1, 2)).__floor__()
    ours = quantize(image(2.0**exponent, lo, hi), np.array([[x]]))
    assert ours.dtype == np.int64
    assert ours.tolist() == [[min(max(expected, lo), hi)]]


def test_quantize_at_ties_and_beside_them() -> None:
    ties = np.arange(-8, 8) + 0.5
    for x, shift in itertools.product([ties], [np.inf, None, -np.inf]):
        values = x if shift is None else np.nextafter(x, shift)
        expected = [(Fraction(float(value)) + Fraction(1, 2)).__floor__() for value in values]
        assert quantize(image(), values[:, None])[:, 0].tolist() == expected
    # just below 1/2, where floor(x + 1/2) in floating point gives 1
    assert quantize(image(), np.array([[np.nextafter(0.5, 0)]])).tolist() == [[0]]


def test_quantize_reads_what_numpy_reads() -> None:
    for x in (torch.tensor([[2.5]]), np.float16([[2.5]]), [[2.5]]):
        assert quantize(image(), x).tolist() == [[3]]
    assert quantize(image(0.5), np.array([[7]], np.uint8)).tolist() == [[14]]
    assert quantize(image(2.0**-1000, 0, 9), np.array([[1e300]])).tolist() == [[9]]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array([[np.nan]]), "NaN"),
        (np.array([[-np.inf]]), "infinities"),
        (np.array([[1j]]), "not real numbers"),
        (np.array([["a"]]), "not real numbers"),
        (np.zeros((2, 2)), r"\[2, 2\].*\[batch, 1\]"),
        (np.zeros(1), r"\[batch, 1\]"),
        (np.float64(1), r"\[batch, 1\]"),
        (torch.zeros(1, 1, requires_grad=True), "detach"),
        ([[1], [1, 2]], "numpy cannot read"),
    ],
)
def test_inputs_that_are_refused(x: Any, message: str) -> None:
    with pytest.raises(ProbqError, match=message):
        quantize(image(), x)


def test_indices() -> None:
    words = node("input", 0, shape=[2], index=True, count=5)
    assert quantize(words, torch.tensor([[0, 4]])).tolist() == [[0, 4]]
    for wrong in ([[0, 5]], [[-1, 0]], [[0.0, 1.0]]):
        with pytest.raises(ProbqError, match="integers"):
            quantize(words, np.array(wrong))


def test_unknown_operation_is_named() -> None:
    broken = node("clip", lo=0, hi=1)
    object.__setattr__(broken, "op", "attention")
    with pytest.raises(ProbqError, match="node clip: unknown operation 'attention'"):
        evaluate(broken, np.zeros((1, 1), int))
