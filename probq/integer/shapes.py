"""The values of an integer model have shapes that its nodes alone give: nothing is computed or allocated."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from probq.integer.loops.body import BEGINS
from probq.integer.loops.meaning import begin_shapes
from probq.integer.node import Node
from probq.integer.switches.body import SWITCH
from probq.integer.switches.meaning import branch_shape
from probq.integer.windows import blind, ceil_size, span
from probq.utils.errors import ProbqError

Shape = tuple[int, ...]


def shape_of(node: Node, inputs: Sequence[Shape]) -> Shape:
    """Return the shape of a node's output from those of its inputs, all without the batch.

    Raises:
        ProbqError: they do not fit the operation.
    """
    try:
        return _SHAPES[node.op](node, *inputs)
    except ProbqError as error:
        raise ProbqError(f"node {node.name} ({node.op}): {error}") from error


def shapes_of(nodes: Sequence[Node]) -> dict[str, Shape]:
    """Return the shape of every node's output by name, bodies of loops and switches included.

    Raises:
        ProbqError: as `shape_of`.
    """
    found: dict[str, Shape] = {}
    _add_shapes(nodes, found)
    return found


def _add_shapes(nodes: Sequence[Node], found: dict[str, Shape]) -> None:
    """Add the shapes of nodes to those that are known."""
    for node in nodes:
        inputs = [found[name] for name in node.inputs]
        if node.op == SWITCH:
            _add_shapes(node.body, found)
            found[node.name] = branch_shape(node, found)
        elif node.body:
            found |= begin_shapes(node, inputs)
            _add_shapes([inner for inner in node.body if inner.op not in BEGINS], found)
            found[node.name] = (inputs[0][0], *found[node.attributes["output"]])
        else:
            found[node.name] = shape_of(node, inputs)


def axis_of(axis: int, shape: Shape) -> int:
    """Return an axis counted from the front.

    Raises:
        ProbqError: there is no such axis.
    """
    if not -len(shape) <= axis < len(shape):
        raise ProbqError(f"axis {axis} of a value of shape {shape}")
    return axis % len(shape)


def padded(shape: Shape, padding: Sequence[Sequence[int]]) -> Shape:
    """Return a shape whose last axes are widened by a pair [low, high] of elements each.

    Raises:
        ProbqError: there are more pairs than axes.
    """
    if len(padding) > len(shape):
        raise ProbqError(f"padding for {len(padding)} axes of a value with {len(shape)}")
    kept = len(shape) - len(padding)
    sizes = [size + low + high for size, (low, high) in zip(shape[kept:], padding, strict=True)]
    return (*shape[:kept], *sizes)


def spread(node: Node, x: Shape) -> Shape:
    """Return what the kernel of a convolution moves over, the padded input, with zeros between where it is transposed.

    Raises:
        ProbqError: the input does not fit the weight.
    """
    weight, spec = node.tensors["weight"].shape, node.attributes
    channels = weight[0] if spec["transposed"] else weight[1] * spec["groups"]
    if len(x) != len(weight) - 1 or x[0] != channels or weight[0] % spec["groups"]:
        raise ProbqError(f"a weight of shape {weight} in {spec['groups']} groups does not take a value of shape {x}")
    if not spec["transposed"]:
        return padded(x, spec["padding"])
    extra = spec.get("output_padding") or [0] * len(x[1:])
    reach = [d * (k - 1) for d, k in zip(spec["dilation"], weight[2:], strict=True)]
    ends = zip(x[1:], spec["stride"], reach, spec["padding"], extra, strict=True)
    return (x[0], *((n - 1) * s + 1 + 2 * r - low - high + e if n else 0 for n, s, r, (low, high), e in ends))


def _input(node: Node) -> Shape:
    return tuple(node.attributes["shape"])


def _same(_: Node, x: Shape) -> Shape:
    return x


def _linear(node: Node, x: Shape) -> Shape:
    outputs, features = node.tensors["weight"].shape
    if x[-1:] != (features,):
        raise ProbqError(f"the weight takes {features} features on the last axis of a value of shape {x}")
    return (*x[:-1], outputs)


def _conv(node: Node, x: Shape) -> Shape:
    weight, spec = node.tensors["weight"].shape, node.attributes
    stride = [1] * len(x[1:]) if spec["transposed"] else spec["stride"]
    ends = zip(spread(node, x)[1:], weight[2:], stride, spec["dilation"], strict=True)
    return (len(node.tensors["bias"]), *(span(*each) for each in ends))


def _embedding(node: Node, x: Shape) -> Shape:
    return (*x, node.tensors["weight"].shape[1])


def _elementwise(node: Node, x: Shape) -> Shape:
    for name, tensor in node.tensors.items():
        sizes = zip(tensor.shape[::-1], x[::-1], strict=False)
        if tensor.ndim > len(x) or any(own not in (1, size) for own, size in sizes):
            raise ProbqError(f"{name} of shape {tensor.shape} does not broadcast to a value of shape {x}")
    return x


def _pool(node: Node, x: Shape) -> Shape:
    spec = node.attributes
    kept = len(x) - len(spec["kernel"])
    wide, dilation = padded(x, spec["padding"])[kept:], spec.get("dilation") or [1] * len(spec["kernel"])
    if spec.get("ceil_mode"):
        ends = zip(x[kept:], spec["padding"], spec["kernel"], spec["stride"], dilation, strict=True)
        size = [ceil_size(*each) for each in ends]
    else:
        size = [span(*each) for each in zip(wide, spec["kernel"], spec["stride"], dilation, strict=True)]
    if min(size, default=1) < 1:
        raise ProbqError(f"a kernel of {spec['kernel']} does not fit a value of shape {x}")
    if node.op == "max_pool":
        lows = [low for low, _ in spec["padding"]]
        if any(map(blind, x[kept:], lows, size, spec["kernel"], spec["stride"], dilation)):
            raise ProbqError("a window sees nothing but padding; use less padding")
    return (*x[:kept], *size)


def _sum(node: Node, x: Shape) -> Shape:
    axes = [axis_of(axis, x) for axis in node.attributes["axes"]]
    if len(set(axes)) != len(axes):
        raise ProbqError(f"axes {node.attributes['axes']} name an axis twice")
    sizes = [1 if k in axes else size for k, size in enumerate(x)]
    return tuple(size for k, size in enumerate(sizes) if node.attributes["keepdims"] or k not in axes)


def _reshape(node: Node, x: Shape) -> Shape:
    shape = tuple(node.attributes["shape"])
    if math.prod(shape) != math.prod(x):
        raise ProbqError(f"a value of shape {x} cannot take shape {shape}")
    return shape


def _permute(node: Node, x: Shape) -> Shape:
    axes = [axis_of(axis, x) for axis in node.attributes["axes"]]
    if sorted(axes) != list(range(len(x))):
        raise ProbqError(f"axes {node.attributes['axes']} do not order those of a value of shape {x}")
    return tuple(x[axis] for axis in axes)


def _rows(_: Node, x: Shape) -> Shape:
    if not x or not x[-1]:
        raise ProbqError(f"there is nothing along the last axis of a value of shape {x}")
    return x


def _add(_: Node, x: Shape, y: Shape) -> Shape:
    low, high = sorted((x, y), key=len)
    low = (1,) * (len(high) - len(low)) + low
    if any(a != b and 1 not in (a, b) for a, b in zip(low, high, strict=True)):
        raise ProbqError(f"values of shapes {x} and {y} do not broadcast")
    return tuple(b if a == 1 else a for a, b in zip(low, high, strict=True))


def _quotient(node: Node, x: Shape, y: Shape) -> Shape:
    if len(x) != len(y):
        raise ProbqError(f"dividends of shape {x} need divisors of as many axes, not {y}")
    return _add(node, x, y)


def _where(node: Node, *shapes: Shape) -> Shape:
    mask, x, y = shapes
    return _add(node, mask, _add(node, x, y))


def _argmax(node: Node, x: Shape) -> Shape:
    axis = axis_of(node.attributes["axis"], x)
    if not x[axis]:
        raise ProbqError(f"there is nothing along axis {axis} of a value of shape {x}")
    return (*x[:axis], *x[axis + 1 :])


def _matmul(_: Node, x: Shape, y: Shape) -> Shape:
    fits = len(x) == len(y) > 1 and x[-1] == y[-2]
    if not fits or any(a != b and 1 not in (a, b) for a, b in zip(x[:-2], y[:-2], strict=True)):
        raise ProbqError(f"no matrices of shapes {x} and {y} can be multiplied")
    return (*(b if a == 1 else a for a, b in zip(x[:-2], y[:-2], strict=True)), x[-2], y[-1])


def _concat(node: Node, *shapes: Shape) -> Shape:
    axis, first = axis_of(node.attributes["axis"], shapes[0]), shapes[0]
    for other in shapes:
        if len(other) != len(first) or other[:axis] + other[axis + 1 :] != first[:axis] + first[axis + 1 :]:
            raise ProbqError(f"values of shapes {first} and {other} do not join on axis {axis}")
    return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])


def _repeat(node: Node, x: Shape) -> Shape:
    factors = node.attributes["factors"]
    if len(factors) > len(x):
        raise ProbqError(f"factors for {len(factors)} axes of a value with {len(x)}")
    kept = len(x) - len(factors)
    return (*x[:kept], *(size * factor for size, factor in zip(x[kept:], factors, strict=True)))


def _pad(node: Node, x: Shape) -> Shape:
    return padded(x, node.attributes["padding"])


def _slice(node: Node, x: Shape) -> Shape:
    spec = node.attributes
    axis = axis_of(spec["axis"], x)
    if not 0 <= spec["start"] < spec["stop"] <= x[axis]:
        raise ProbqError(f"the slice {spec['start']} : {spec['stop']} of {x[axis]} elements")
    return (*x[:axis], len(range(spec["start"], spec["stop"], spec["step"])), *x[axis + 1 :])


_SHAPES: Mapping[str, Callable[..., Shape]] = MappingProxyType(
    {
        "input": _input, "linear": _linear, "conv": _conv, "embedding": _embedding, "requantize": _elementwise,
        "multiply": _elementwise, "clip": _same, "max_pool": _pool, "sum_pool": _pool, "sum": _sum,
        "reshape": _reshape, "permute": _permute, "add": _add, "concat": _concat, "table": _same, "repeat": _repeat,
        "pad": _pad, "slice": _slice, "softmax": _rows, "log_softmax": _rows, "normalise": _rows, "product": _add,
        "quotient": _quotient, "matmul": _matmul, "where": _where, "argmax": _argmax,
    }
)  # fmt: skip
