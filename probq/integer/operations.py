"""A node of an integer model must hold the inputs, tensors and attributes of its operation."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from probq.integer.normalisers.meaning import Exponentials
from probq.utils.errors import ProbqError

LAYERS = ("linear", "conv", "embedding")
NORMALISE = ("centred", "eps", "root", "bits")  # attributes, in the order in which `normalise` takes them
MOST_DIGITS = 31  # binary ones behind the point
LARGEST = 2**61
MOST_ENTRIES = 2**16  # of a table


@dataclass(frozen=True)
class Signature:
    """A signature names the parts of one operation.

    Args:
        inputs: how many values it takes; None for one or more.
        tensors: each tensor's allowed numbers of axes; an empty tuple allows any.
        attributes: each attribute's kind, a key of `KINDS`.
        optional: attributes and tensors that may be left out.
    """

    inputs: int | None = 1
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()


def _is_integer(value: Any) -> bool:
    return type(value) is int and abs(value) <= LARGEST


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_positive(value: Any) -> bool:
    return _is_size(value) and value > 0


def _all(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(check, value))


def _is_pair(value: Any) -> bool:
    return _all(_is_size)(value) and len(value) == 2


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _is_power_of_two(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 2**1024 and math.frexp(value)[0] == 0.5


KINDS: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "an integer": _is_integer,
        "an integer or null": lambda value: value is None or _is_integer(value),
        "a positive integer": _is_positive,
        "1 to 2^61": lambda value: _is_integer(value) and value > 0,
        "0 to 31": lambda value: type(value) is int and 0 <= value <= MOST_DIGITS,
        "true or false": lambda value: type(value) is bool,
        "a positive power of two": _is_power_of_two,
        "a list of sizes": _all(_is_size),
        "a list of positive integers": _all(_is_positive),
        "a list of integers": _all(_is_integer),
        "a list of pairs [low, high]": _all(_is_pair),
        "a name": _is_name,
        "a list of names": _all(_is_name),
    }
)

_WINDOW = MappingProxyType(
    {
        "kernel": "a list of positive integers",
        "stride": "a list of positive integers",
        "padding": "a list of pairs [low, high]",
    }
)
_LIMITS = MappingProxyType({"lo": "an integer", "hi": "an integer"})
_LEVELS = MappingProxyType({"start": "an integer", "step": "a positive integer"})
_CONV = MappingProxyType(
    {
        "stride": "a list of positive integers",
        "padding": "a list of pairs [low, high]",
        "dilation": "a list of positive integers",
        "groups": "a positive integer",
        "transposed": "true or false",
        "output_padding": "a list of sizes",
    }
)
_EXPONENTIALS = MappingProxyType({"coarse": (1,), "fine": (1,)})
_INDEX = Signature(
    0,
    {},
    {"shape": "a list of sizes", "index": "true or false", "count": "a positive integer", "argument": "a name"},
    frozenset({"argument"}),
)

SIGNATURES: Mapping[str, Signature] = MappingProxyType(
    {
        "input": Signature(
            0,
            {},
            {"shape": "a list of sizes", "scale": "a positive power of two", "index": "true or false"}
            | _LIMITS
            | _LEVELS
            | {"argument": "a name"},
            frozenset({"index", "start", "step", "argument"}),
        ),
        "linear": Signature(1, {"weight": (2,), "bias": (1,)}),
        "conv": Signature(1, {"weight": (3, 4, 5), "bias": (1,)}, _CONV, frozenset({"output_padding"})),
        "embedding": Signature(1, {"weight": (2,)}),
        "requantize": Signature(1, {"multiplier": (), "add": (), "shift": ()}, _LIMITS | _LEVELS, frozenset(_LEVELS)),
        "multiply": Signature(1, {"multiplier": ()}),
        "clip": Signature(1, {}, {"lo": "an integer or null", "hi": "an integer or null"}),
        "max_pool": Signature(
            1, {}, _WINDOW | {"dilation": "a list of positive integers", "ceil_mode": "true or false"}
        ),
        "sum_pool": Signature(1, {}, _WINDOW),
        "sum": Signature(1, {}, {"axes": "a list of integers", "keepdims": "true or false"}),
        "reshape": Signature(1, {}, {"shape": "a list of sizes"}),
        "permute": Signature(1, {}, {"axes": "a list of integers"}),
        "add": Signature(2),
        "product": Signature(2),
        "quotient": Signature(2, {}, {"up": "0 to 31", "down": "0 to 31"} | _LIMITS),
        "matmul": Signature(2),
        "where": Signature(3),
        "argmax": Signature(1, {}, {"axis": "an integer"}),
        "concat": Signature(None, {}, {"axis": "an integer"}),
        "table": Signature(1, {"table": (1,)}, {"first": "an integer"}),
        "softmax": Signature(1, _EXPONENTIALS, {"dropped": "0 to 31", "bits": "0 to 31"}),
        "log_softmax": Signature(
            1,
            _EXPONENTIALS | {"octaves": (1,), "logarithms": (1,)},
            {"dropped": "0 to 31", "factor": "a positive integer"},
        ),
        "normalise": Signature(
            1, {}, {"centred": "true or false", "eps": "1 to 2^61", "root": "0 to 31", "bits": "0 to 31"}
        ),
        "repeat": Signature(1, {}, {"factors": "a list of positive integers"}),
        "pad": Signature(1, {}, {"padding": "a list of pairs [low, high]"}),
        "loop": Signature(
            None,
            {},
            {"reverse": "true or false", "output": "a name", "next": "a list of names", "given": "a list of sizes"},
            frozenset({"given"}),
        ),
        "item": Signature(0),
        "switch": Signature(None, {}, {"outputs": "a list of names"}),
        "state": Signature(0, {"first": ()}, {"shape": "a list of sizes"} | _LIMITS, frozenset({"first"})),
        "slice": Signature(
            1, {}, {"axis": "an integer", "start": "an integer", "stop": "an integer", "step": "a positive integer"}
        ),
    }
)  # fmt: skip


def check_operation(op: str, inputs: int, tensors: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> None:
    """Refuse a node whose parts are not those of its operation.

    Raises:
        ProbqError: the operation is unknown, or a part is missing, unknown or of the wrong kind.
    """
    if op not in SIGNATURES:
        raise ProbqError(f"unknown operation {op!r:.80}; use one of {', '.join(SIGNATURES)}")
    signature = _INDEX if op == "input" and attributes.get("index") is True else SIGNATURES[op]
    if signature.inputs not in (inputs, None) or (signature.inputs is None and not inputs):
        raise ProbqError(f"{op} takes {signature.inputs or 'one or more'} inputs, not {inputs}")
    _check_names("tensor", tensors, signature.tensors, signature.optional)
    _check_names("attribute", attributes, signature.attributes, signature.optional)
    for name, axes in signature.tensors.items():
        if axes and name in tensors and tensors[name].ndim not in axes:
            raise ProbqError(f"{name} has {tensors[name].ndim} axes; {op} takes {' or '.join(map(str, axes))}")
    for name, value in attributes.items():
        if not KINDS[signature.attributes[name]](value):
            raise ProbqError(f"attribute {name} must be {signature.attributes[name]}, not {value!r:.80}")
    _check_agreement(op, tensors, attributes)


def _check_names(part: str, given: Mapping[str, Any], known: Mapping[str, Any], optional: frozenset[str]) -> None:
    unknown, missing = sorted(set(given) - set(known)), sorted(set(known) - set(given) - optional)
    if unknown:
        raise ProbqError(f"unknown {part} {unknown[0]!r:.80}; known are: {', '.join(known) or 'none'}")
    if missing:
        raise ProbqError(f"{part} {missing[0]} is missing")


def _check_levels(op: str, attributes: Mapping[str, Any]) -> None:
    """Check that levels `start + step * code` are exact, those of an input in float64, of a requantization in int64."""
    if "lo" not in attributes or op == "clip":
        return
    start, step, ends = attributes.get("start", 0), attributes.get("step", 1), (attributes["lo"], attributes["hi"])
    largest = max(abs(number) for end in ends for number in (start, end, start + step * end))
    if largest >= (2**53 if op == "input" else 2**62):
        raise ProbqError(
            "lo, hi, start and start + step * code must stay within "
            + ("float64's exact integers, 2^53" if op == "input" else "int64, below 2^62")
        )


def _check_agreement(op: str, tensors: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> None:
    """Check what the parts of one node must have in common."""
    if "lo" in attributes and None not in (attributes["lo"], attributes["hi"]) and attributes["lo"] > attributes["hi"]:
        raise ProbqError(f"lo = {attributes['lo']} is above hi = {attributes['hi']}")
    _check_levels(op, attributes)
    if "shift" in tensors and tensors["shift"].size and not 0 <= tensors["shift"].min() <= tensors["shift"].max() <= 62:
        raise ProbqError("shifts must lie in 0 .. 62, so that int64 holds what is shifted")
    if "bias" in tensors:
        weight, grouped = tensors["weight"], attributes.get("transposed", False)
        outputs = weight.shape[1] * attributes["groups"] if grouped else weight.shape[0]
        if len(tensors["bias"]) != outputs:
            raise ProbqError(f"bias has {len(tensors['bias'])} elements for {outputs} outputs")
    if "table" in tensors and not 0 < len(tensors["table"]) <= MOST_ENTRIES:
        raise ProbqError(f"a table has 1 to {MOST_ENTRIES:,} entries, not {len(tensors['table']):,}")
    for name in (*_EXPONENTIALS, "octaves", "logarithms"):
        if name in tensors and not 0 < len(tensors[name]) <= MOST_ENTRIES:
            raise ProbqError(f"a table has 1 to {MOST_ENTRIES:,} entries, not {len(tensors[name]):,} in {name}")
    if "dropped" in attributes:
        Exponentials(tensors["coarse"], tensors["fine"], attributes["dropped"]).check()
    lists = {name: attributes[name] for name in _WINDOW | _CONV if isinstance(attributes.get(name), list | tuple)}
    spatial = tensors["weight"].ndim - 2 if op == "conv" else len(lists.get("kernel", lists.get("padding", ())))
    for name, value in lists.items():
        if len(value) != spatial:
            raise ProbqError(f"attribute {name} has {len(value)} entries for {spatial} spatial axes")
