"""The interpreter says what each operation of an integer model means, on int64 with the batch first.

A matrix product of integers is held in floating point so that BLAS computes it. That is exact while
`max|x| * max_o sum|w_o| + max|b|` stays below 2^24 in float32 and below 2^53 in float64; both are checked on the values
at hand, and beyond them the product is refused. int64 arithmetic that could overflow is refused likewise.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from probq.integer.data_movement import MOVES, behind_batch, check_range
from probq.integer.loops.meaning import run_loop
from probq.integer.node import Node
from probq.integer.normalisers.meaning import log_softmax, normalise, softmax
from probq.integer.normalisers.quotient import quotient
from probq.integer.operations import NORMALISE
from probq.integer.ranges import exponentials_of
from probq.integer.switches.meaning import run_switch
from probq.integer.windows import blind, ceil_size, columns, pad, pool, span, upright
from probq.utils.errors import ProbqError

COLUMNS = 2**22  # elements of one block of a convolution's unfolded input
LOWEST = np.iinfo(np.int64).min


def evaluate(node: Node, *values: np.ndarray) -> np.ndarray:
    """Return the node's output, int64 `[batch, ...]`, from the outputs of its inputs.

    Raises:
        ProbqError: the operation is unknown, shapes do not fit, or the result would not be exact.
    """
    if node.op not in OPERATIONS:
        raise ProbqError(f"node {node.name}: unknown operation {node.op!r}; use one of {', '.join(OPERATIONS)}")
    try:
        return OPERATIONS[node.op](node, *values)
    except ProbqError as error:
        raise ProbqError(f"node {node.name} ({node.op}): {error}") from error
    except (ValueError, IndexError, TypeError, OverflowError) as error:
        shapes = ", ".join(str(value.shape) for value in values)
        raise ProbqError(f"node {node.name} ({node.op}) does not fit values of shape {shapes}: {error}") from error


def quantize(node: Node, x: Any) -> np.ndarray:
    """Return the integers that enter the network, int64 `[batch, *shape]`: `clip(floor(x / scale + 1/2), lo, hi)`.

    With levels `start + step * code` the code is `clip(floor(x / (scale step) + 1/2 - start / step), lo, hi)`.

    Half is rounded up and the result is exact: `u = x / scale` is (the scale is a power of two), and `u + 1/2`, which
    may not be, is never formed. Indices are only checked.

    Args:
        node: the input node.
        x: a numpy array or anything that numpy can read, as a torch tensor on the CPU; the batch comes first.

    Raises:
        ProbqError: the shape is wrong, or values are not finite, not real numbers or not valid indices.
    """
    x = as_array(x)
    _check_shape(node, x)
    if node.attributes.get("index"):
        return evaluate(node, x.astype(np.int64) if x.dtype == bool else x)
    if x.dtype.kind not in "fiub":
        raise ProbqError(f"the input holds {x.dtype}, not real numbers")
    if not np.isfinite(x).all():
        raise ProbqError("the input holds infinities or NaN; replace them first")
    with np.errstate(over="ignore", invalid="ignore"):  # a quotient beyond float64 is clipped like any other
        step = node.attributes.get("step", 1)
        steps = x.astype(np.float64) / (node.attributes["scale"] * step)
        below = np.floor(steps)
        twice = (step - 2 * node.attributes.get("start", 0)) // step
        rounded = below + (steps - below >= 0.5) * (twice % 2) + twice // 2
    return _levels(node, rounded.clip(node.attributes["lo"], node.attributes["hi"]).astype(np.int64))


def as_array(x: Any) -> np.ndarray:
    """Return a numpy array of what numpy can read.

    Raises:
        ProbqError: numpy cannot.
    """
    try:
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProbqError(
            f"numpy cannot read the input ({error}); give a numpy array, or x.detach().cpu().float()"
        ) from error


def _check_shape(node: Node, x: np.ndarray) -> None:
    shape = tuple(node.attributes["shape"])
    if x.ndim == 0 or x.shape[1:] != shape:
        expected = ", ".join(["batch", *map(str, shape)])
        raise ProbqError(f"the input has shape {list(x.shape)}, but the model takes [{expected}]")


def _input(node: Node, x: np.ndarray) -> np.ndarray:
    _check_shape(node, x)
    if x.dtype.kind not in "iu":
        raise ProbqError(f"expected integers, not {x.dtype}; convert indices, quantize real numbers (quantize_input)")
    index = node.attributes.get("index")
    limits = (0, node.attributes["count"] - 1) if index else (node.attributes["lo"], node.attributes["hi"])
    lo, hi = (int(value) for value in _levels(node, np.array(limits)))
    check_range(x, lo, hi)
    return x.astype(np.int64, copy=False)


def _largest(x: np.ndarray) -> int:
    """Return the largest magnitude, as a Python integer that cannot overflow."""
    return max(-int(x.min()), int(x.max())) if x.size else 0


def _check_int64(largest: int) -> None:
    if largest >= 2**63:
        raise ProbqError("a product or sum may leave int64; use smaller multipliers")


def _exact(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> type[np.floating[Any]]:
    """Return the floating-point type in which the product of `weight` [O, I] with `x`, plus `bias`, is exact."""
    row_sum = float(np.abs(weight.astype(np.float64)).sum(axis=1).max(initial=0))
    return _real(_largest(x) * row_sum * (1 + 2**-20) + _largest(bias))  # the margin covers this line's own rounding


def _real(bound: float) -> type[np.floating[Any]]:
    """Return the type in which sums are exact whose partial sums, in whatever order, keep below a bound."""
    if bound >= 2**53:
        raise ProbqError(f"the sum may reach {bound:.3g}, beyond exact arithmetic (2^53); use narrower widths")
    return np.float32 if bound < 2**24 else np.float64


def _linear(node: Node, x: np.ndarray) -> np.ndarray:
    weight, bias = node.tensors["weight"], node.tensors["bias"]
    if x.shape[1:][-1:] != weight.shape[1:]:
        raise ProbqError(f"the weight takes {weight.shape[1]} features on the last axis")
    real = _exact(x, weight, bias)
    product = x.astype(real) @ weight.astype(real).T
    product += bias.astype(real)
    return product.astype(np.int64)


def _conv(node: Node, x: np.ndarray) -> np.ndarray:
    weight, bias, spec = node.tensors["weight"], node.tensors["bias"], node.attributes
    spatial = weight.ndim - 2
    if x.ndim != spatial + 2:
        raise ProbqError(f"the weight has {spatial} spatial axes, the value {x.ndim - 2}")
    stride, padding = spec["stride"], spec["padding"]
    if spec["transposed"]:
        x, weight, padding = upright(x, weight, spec)
        stride = [1] * spatial
    x = pad(x, padding, 0)
    real = _exact(x, weight.reshape(len(weight), -1), bias)
    kernel = weight.shape[2:]
    size = [span(*each) for each in zip(x.shape[2:], kernel, stride, spec["dilation"], strict=True)]
    block = max(1, COLUMNS // max(1, x.shape[1] * math.prod(kernel) * math.prod(size)))
    matrix = weight.reshape(spec["groups"], -1, math.prod(weight.shape[1:])).astype(real)
    out = np.empty((len(x), len(weight), *size), np.int64)
    for start in range(0, len(x), block):
        unfolded = columns(x[start : start + block].astype(real), kernel, stride, spec["dilation"])
        product = matrix @ unfolded.reshape(len(unfolded), *matrix.shape[::2], math.prod(size))
        product = product.reshape(len(unfolded), len(weight), *size)
        product += bias.astype(real).reshape(-1, *[1] * spatial)
        out[start : start + block] = product
    return out


def _embedding(node: Node, x: np.ndarray) -> np.ndarray:
    weight = node.tensors["weight"]
    check_range(x, 0, len(weight) - 1)
    return weight[x]


def _spread(node: Node, name: str, x: np.ndarray) -> np.ndarray:
    tensor = node.tensors[name]
    if tensor.ndim >= x.ndim or np.broadcast_shapes(tensor.shape, x.shape[1:]) != x.shape[1:]:
        raise ProbqError(f"{name} of shape {tensor.shape} does not broadcast to a value of shape {x.shape[1:]}")
    return tensor


def _requantize(node: Node, x: np.ndarray) -> np.ndarray:
    multiplier, add, shift = (_spread(node, name, x) for name in ("multiplier", "add", "shift"))
    _check_int64(_largest(x) * _largest(multiplier) + _largest(add))
    y = x * multiplier
    y += add
    y >>= shift
    return _levels(node, y.clip(node.attributes["lo"], node.attributes["hi"], out=y))


def _levels(node: Node, codes: np.ndarray) -> np.ndarray:
    """Return `start + step * code`, which is the identity but for codebooks such as binary {-1, +1}."""
    start, step = node.attributes.get("start", 0), node.attributes.get("step", 1)
    return codes if (start, step) == (0, 1) else start + step * codes


def _multiply(node: Node, x: np.ndarray) -> np.ndarray:
    multiplier = _spread(node, "multiplier", x)
    _check_int64(_largest(x) * _largest(multiplier))
    return x * multiplier


def _clip(node: Node, x: np.ndarray) -> np.ndarray:
    lo, hi = node.attributes["lo"], node.attributes["hi"]
    x = x if lo is None else np.maximum(x, lo)
    return x if hi is None else np.minimum(x, hi)


def _max_pool(node: Node, x: np.ndarray) -> np.ndarray:
    spec, spatial, padding = node.attributes, len(node.attributes["kernel"]), []
    for length, kernel, stride, dilation, (low, high) in zip(
        x.shape[x.ndim - spatial :], spec["kernel"], spec["stride"], spec["dilation"], spec["padding"], strict=True
    ):
        if spec["ceil_mode"]:
            size = ceil_size(length, (low, high), kernel, stride, dilation)
            high = max(high, (size - 1) * stride + dilation * (kernel - 1) + 1 - length - low)
        if blind(length, low, span(length + low + high, kernel, stride, dilation), kernel, stride, dilation):
            raise ProbqError("a window sees nothing but padding; use less padding")
        padding.append([low, high])
    return pool(pad(x, padding, LOWEST), spec["kernel"], spec["stride"], spec["dilation"], np.maximum)


def _sum_pool(node: Node, x: np.ndarray) -> np.ndarray:
    kernel = node.attributes["kernel"]
    _check_int64(_largest(x) * math.prod(kernel))
    x = pad(x, node.attributes["padding"], 0)
    return pool(x, kernel, node.attributes["stride"], [1] * len(kernel), np.add)


def _sum(node: Node, x: np.ndarray) -> np.ndarray:
    axes = tuple(behind_batch(axis, x) for axis in node.attributes["axes"])
    _check_int64(_largest(x) * math.prod(x.shape[axis] for axis in axes))
    return x.sum(axis=axes, keepdims=node.attributes["keepdims"])


def _add(node: Node, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    _check_int64(_largest(x) + _largest(y))
    low, high = _aligned(x, y)
    return high + low


def _product(node: Node, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    _check_int64(_largest(x) * _largest(y))
    low, high = _aligned(x, y)
    return high * low


def _quotient(node: Node, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.ndim != y.ndim:
        raise ProbqError(f"dividends of shape {x.shape[1:]} need divisors of as many axes, not {y.shape[1:]}")
    found = quotient(x, y, node.attributes["up"], node.attributes["down"])
    return found.clip(node.attributes["lo"], node.attributes["hi"])


def _aligned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two values so that they broadcast behind the batch, the one of fewer axes first."""
    low, high = sorted((x, y), key=np.ndim)
    return low.reshape(len(low), *[1] * (high.ndim - low.ndim), *low.shape[1:]), high


def _matmul(node: Node, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the matrix products over the last two axes; those before them broadcast."""
    if x.ndim != y.ndim or x.ndim < 3 or x.shape[-1] != y.shape[-2]:
        raise ProbqError(f"no matrices of shapes {x.shape[1:]} and {y.shape[1:]} can be multiplied")
    real = _real(_largest(x) * _largest(y) * x.shape[-1])
    return np.matmul(x.astype(real), y.astype(real)).astype(np.int64)


def _log_softmax(node: Node, x: np.ndarray) -> np.ndarray:
    octaves, logarithms = node.tensors["octaves"], node.tensors["logarithms"]
    return log_softmax(x, exponentials_of(node), octaves, logarithms, node.attributes["factor"])


OPERATIONS: Mapping[str, Callable[..., np.ndarray]] = MappingProxyType(
    {
        "input": _input,
        "linear": _linear,
        "conv": _conv,
        "embedding": _embedding,
        "requantize": _requantize,
        "multiply": _multiply,
        "clip": _clip,
        "max_pool": _max_pool,
        "sum_pool": _sum_pool,
        "sum": _sum,
        "add": _add,
        "softmax": lambda node, x: softmax(x, exponentials_of(node), node.attributes["bits"]),
        "log_softmax": _log_softmax,
        "normalise": lambda node, x: normalise(x, *(node.attributes[name] for name in NORMALISE)),
        "product": _product,
        "quotient": _quotient,
        "matmul": _matmul,
        "loop": lambda node, *inputs: run_loop(node, inputs, evaluate),
        "switch": lambda node, *inputs: run_switch(node, inputs, evaluate),
        **MOVES,
    }
)
