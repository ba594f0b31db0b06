"""An integer model is traced in da4ml's fixed-point variables: every operation is exact, rounding is add and shift."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from probq.export.common.requantization import to_shift
from probq.integer import IntegerModel, Node
from probq.integer.ranges import Range
from probq.utils.errors import ProbqError
from probq.utils.optional_import import require

COSTS = (1, -1, -1)  # da4ml's default: carries are free, adders unlimited in width
Trace = Any  # an array of objects: da4ml's FixedVariable, [*shape]


def traced(model: IntegerModel, found: Mapping[str, Range]) -> Any:
    """Return the model as da4ml's `CombLogic`, its inputs and outputs flattened in C order.

    Raises:
        ProbqError: da4ml is missing, or a requantization does not only shift.
    """
    library = require("da4ml.trace", "verilog")
    reached = found[model.input.name]
    ones = np.ones(reached.shape)
    inputs = library.FixedVariableArray.from_lhs(reached.low * ones, reached.high * ones, ones, COSTS)
    values = {model.input.name: inputs}
    for node in model.nodes:
        if node.op != "input":
            try:
                values[node.name] = OPERATIONS[node.op](values[node.inputs[0]], node)
            except ProbqError as error:
                raise ProbqError(f"node {node.name} ({node.op}) cannot be written as Verilog: {error}") from error
    return library.comb_trace(inputs.reshape(-1), values[model.output].reshape(-1))


def _input(x: Trace, _: Node) -> Trace:
    return x


def _linear(x: Trace, node: Node) -> Trace:
    return x @ node.tensors["weight"].T.astype(np.float64) + node.tensors["bias"].astype(np.float64)


def _requantize(x: Trace, node: Node) -> Trace:
    """Compute `start + step clip((x + add) >> shift, lo, hi)`: da4ml truncates towards minus infinity."""
    parts = np.broadcast_arrays(*(node.tensors[name] for name in ("multiplier", "add", "shift")))
    shift = to_shift(*parts)
    if isinstance(shift, str):
        raise ProbqError(
            f'{shift}, and adder trees only shift; export to ONNX or C, or quantize with Plan(profile="shift"), whose '
            "scales are powers of two, and let constants be such, too"
        )
    spec = node.attributes
    adds, shifts = (np.broadcast_to(part, x.shape).reshape(-1) for part in (shift.add, shift.shift))
    codes = []
    for value, add, by in zip(x.reshape(-1)._vars, adds.tolist(), shifts.tolist(), strict=True):
        code = _floored(value + float(add), by).max_of(float(spec["lo"])).min_of(float(spec["hi"]))
        codes.append(code * float(spec.get("step", 1)) + float(spec.get("start", 0)))
    return _array(codes, x)


def _floored(value: Any, shift: int) -> Any:
    """Return `floor(value / 2^shift)`."""
    if shift > 0:
        if value.low == value.high:
            return value * 0.0 + float(int(value.low) >> shift)
        signed, whole, _ = value.kif
        if int(signed) + int(whole) <= shift:  # nothing but the sign is left
            return value * 0.0 if not signed else _sign(value)
        value = value.quantize(signed, whole, -shift)
    return value * 2.0**-shift


def _sign(value: Any) -> Any:
    """Return -1 where a value is negative, else 0."""
    return value.is_negative() * -1.0


def _multiply(x: Trace, node: Node) -> Trace:
    factors = np.broadcast_to(node.tensors["multiplier"], x.shape).reshape(-1).tolist()
    return _array([value * float(factor) for value, factor in zip(x.reshape(-1)._vars, factors, strict=True)], x)


def _clip(x: Trace, node: Node) -> Trace:
    lo, hi = node.attributes["lo"], node.attributes["hi"]
    low = [v if lo is None else v.max_of(float(lo)) for v in x.reshape(-1)._vars]
    return _array([v if hi is None else v.min_of(float(hi)) for v in low], x)


def _array(values: list[Any], like: Trace) -> Trace:
    return require("da4ml.trace", "verilog").FixedVariableArray(np.array(values).reshape(like.shape))


def _reshape(x: Trace, node: Node) -> Trace:
    return x.reshape(tuple(node.attributes["shape"]))


OPERATIONS: Mapping[str, Callable[[Trace, Node], Trace]] = MappingProxyType(
    {
        "input": _input, "linear": _linear, "requantize": _requantize, "multiply": _multiply, "clip": _clip,
        "reshape": _reshape,
    }
)  # fmt: skip
