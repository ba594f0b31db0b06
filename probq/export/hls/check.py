"""hls4ml's `io_stream` computes some models exactly; others are refused, by name, before it is asked."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from probq.export.qonnx.graph import width
from probq.integer import IntegerModel, Node
from probq.integer.ranges import Range
from probq.utils.errors import ProbqError


def check_model(model: IntegerModel) -> None:
    """Refuse a model of which hls4ml is known to refuse a part, or to compute it otherwise.

    Raises:
        ProbqError: naming the node and the reason.
    """
    found = model.ranges
    for node in model.nodes:
        if node.op not in _REASONS or node.attributes.get("index"):
            what = "indices" if node.op == "input" else node.op
            raise ProbqError(f"node {node.name}: {what} has no HLS form, only {', '.join(_REASONS)}; export to C")
    for node in model.nodes:
        reached = found[node.inputs[0]] if node.inputs else found[node.name]
        reason = _REASONS[node.op](node, reached)
        if reason:
            raise ProbqError(
                f"node {node.name} ({node.op}) has no HLS form: {reason}; export to C, or change that layer"
            )
    if len(model.input.attributes["shape"]) > 3:
        raise ProbqError(f"the input has {len(model.input.attributes['shape'])} axes; HLS streams images and vectors")
    if len(found[model.output].shape) > 1:
        raise ProbqError(f"the output {model.output} is an image; HLS streams vectors out: end with a linear layer")


def _levels(node: Node, _: Range) -> str:
    """hls4ml clips to what a type holds, and has no other clip."""
    spec = node.attributes
    lo, hi = spec["lo"], spec["hi"]
    if (spec.get("start", 0), spec.get("step", 1)) != (0, 1):
        return "its levels are not consecutive integers, and of binary values hls4ml computed some networks otherwise"
    least, most = width(lo, hi).limits
    return "" if (lo, hi) == (least, most) else f"it clips to {lo} .. {hi}, and a fixed-point type to {least} .. {most}"


def _requantize(node: Node, x: Range) -> str:
    """An accumulator wholly below the last bit of its code trips an assertion in the C++ types."""
    shift, multiplier = node.tensors["shift"], node.tensors["multiplier"]
    if shift.size and 2 * x.bound * int(multiplier.max()) < 2 ** int(shift.min()):
        return f"it shifts integers up to {x.bound:,} by {int(shift.min())} bits, which leaves nothing of them"
    return _levels(node, x)


def _linear(_: Node, x: Range) -> str:
    return "" if len(x.shape) == 1 else f"its input has {len(x.shape)} axes"


def _conv(node: Node, x: Range) -> str:
    spec = node.attributes
    if spec["transposed"]:
        return "it is transposed"
    if spec["groups"] != 1:
        return f"it has {spec['groups']} groups, which hls4ml computes otherwise"
    if any(step != 1 for step in spec["dilation"]):
        return f"it has the dilation {spec['dilation']}"
    return "" if len(x.shape) < 4 else "it has 3 spatial axes"


def _max_pool(node: Node, x: Range) -> str:
    spec = node.attributes
    if len(spec["kernel"]) != 2 or len(x.shape) != 3:
        return "only two-dimensional pooling streams"
    if spec["kernel"] != spec["stride"] or any(step != 1 for step in spec["dilation"]):
        return f"windows of {spec['kernel']} at steps of {spec['stride']} overlap or leave gaps"
    if any(end for pair in spec["padding"] for end in pair):
        return "it has padding"
    partial = any(size % step for size, step in zip(x.shape[1:], spec["stride"], strict=True))
    return "its last window is partial (ceil_mode)" if spec["ceil_mode"] and partial else ""


def _reshape(node: Node, x: Range) -> str:
    return "" if len(node.attributes["shape"]) == 1 else f"it gives {len(node.attributes['shape'])} axes, not a vector"


def _clip(node: Node, x: Range) -> str:
    lo, hi = node.attributes["lo"], node.attributes["hi"]
    return "" if (lo, hi) in ((0, None), (None, None)) else f"it clips to {lo} .. {hi}, and only a ReLU streams"


_REASONS: Mapping[str, Callable[[Node, Range], str]] = MappingProxyType(
    {
        "input": _levels, "linear": _linear, "conv": _conv, "requantize": _requantize, "max_pool": _max_pool,
        "reshape": _reshape, "clip": _clip,
    }
)  # fmt: skip
