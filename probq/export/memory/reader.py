"""The files of a memory folder are computed in numpy here, with no arithmetic of `probq.integer.interpreter`."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from probq.export.memory.words import read_words
from probq.integer import IntegerModel, Node
from probq.integer.ranges import Range
from probq.utils.errors import ProbqError

Entry = Mapping[str, Any]
Tensors = Mapping[str, np.ndarray]
BATCH = 16  # inputs computed at once


def opened(folder: Path, index: Entry) -> Callable[[np.ndarray], np.ndarray]:
    """Return the output as a function of integers, once the folder's test vectors were repeated.

    Raises:
        ProbqError: a file is damaged, or a vector is not what the parameters compute; from the function: the integers
            do not fit.
    """
    try:
        nodes, output = index["nodes"], index["output"]
        tensors = [{key: read_words(folder, words) for key, words in entry["tensors"].items()} for entry in nodes]
        _check(folder, nodes, tensors, _model(index, tensors).ranges)
        first = nodes[0]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, ProbqError):
            raise
        raise ProbqError(f"{folder} is damaged: {error!r:.200}; write it again") from error

    def compute(integers: np.ndarray) -> np.ndarray:
        _check_input(first, integers)
        parts = [integers[k : k + BATCH] for k in range(0, max(1, len(integers)), BATCH)]
        return np.concatenate([_values(nodes, tensors, part)[output] for part in parts])

    return compute


def _model(index: Entry, tensors: Sequence[Tensors]) -> IntegerModel:
    """Return the folder's nodes as a model: what they ask for is known, and in proportion, before it is computed.

    Raises:
        ProbqError: they are none.
    """
    nodes = []
    for entry, arrays in zip(index["nodes"], tensors, strict=True):
        own = {key: array for key, array in arrays.items() if key != "threshold"}
        nodes.append(Node(entry["name"], entry["op"], tuple(entry["inputs"]), entry["attributes"], own))
    model = IntegerModel(nodes, index["output"], index["output_scale"])
    for entry in index["nodes"]:
        if entry["shape"] != list(model.ranges[entry["name"]].shape):
            raise ProbqError(f"node {entry['name']} has not the shape that its inputs and parameters give it")
    return model


def _check(folder: Path, nodes: Sequence[Entry], tensors: Sequence[Tensors], reached: Mapping[str, Range]) -> None:
    """Repeat the test vectors; compare thresholds with multipliers, and ranges with those that are proven."""
    for entry, arrays in zip(nodes, tensors, strict=True):
        if "threshold" in arrays:
            source = reached[entry["inputs"][0]]
            _check_thresholds(entry, arrays, source.low, source.high)
    vectors = {entry["name"]: read_words(folder, entry["vector"]) for entry in nodes}
    found = _values(nodes, tensors, vectors[nodes[0]["name"]])
    for name, vector in vectors.items():
        if not len(vector) or found[name].shape != vector.shape or (found[name] != vector).any():
            raise ProbqError(f"the test vectors of node {name} are not what the parameters of {folder} compute")
    for entry in nodes:
        if (entry["low"], entry["high"]) != (reached[entry["name"]].low, reached[entry["name"]].high):
            raise ProbqError(f"the range of node {entry['name']} is not that of its parameters; write it again")
    _check_input(nodes[0], vectors[nodes[0]["name"]])


def _check_input(entry: Entry, x: np.ndarray) -> None:
    if x.ndim == 0 or x.dtype.kind not in "iu" or list(x.shape[1:]) != entry["shape"]:
        raise ProbqError(f"expected integers of shape [batch, {entry['shape']}], not {x.dtype} of shape {x.shape}")
    if x.size and not entry["low"] <= x.min() <= x.max() <= entry["high"]:
        raise ProbqError(f"integers {x.min()} .. {x.max()} leave the range {entry['low']} .. {entry['high']}")


def _values(nodes: Sequence[Entry], tensors: Sequence[Tensors], x: np.ndarray) -> dict[str, np.ndarray]:
    """Return every node's value by name, `[batch, *shape]`."""
    values: dict[str, np.ndarray] = {}
    for entry, arrays in zip(nodes, tensors, strict=True):
        inputs = x.astype(np.int64) if entry["op"] == "input" else values[entry["inputs"][0]]
        values[entry["name"]] = OPERATIONS[entry["op"]](inputs, arrays, entry)
    return values


def _input(x: np.ndarray, _: Tensors, entry: Entry) -> np.ndarray:
    return x


def _linear(x: np.ndarray, tensors: Tensors, entry: Entry) -> np.ndarray:
    return np.einsum("...i,oi->...o", x, tensors["weight"]) + tensors["bias"]


def _conv(x: np.ndarray, tensors: Tensors, entry: Entry) -> np.ndarray:
    """Return a sum over the kernel's taps, each a product over the channels of a group."""
    spec, weight = entry["attributes"], tensors["weight"]
    groups, sizes = spec["groups"], entry["shape"][1:]
    x = np.pad(x, [(0, 0), (0, 0), *map(tuple, spec["padding"])])
    total = np.zeros((len(x), groups, len(weight) // groups, math.prod(sizes)), np.int64)
    for tap in itertools.product(*map(range, weight.shape[2:])):
        seen = _taken(x, _positions(tap, spec, sizes)).reshape(len(x), groups, -1, math.prod(sizes))
        kernel = _taken(weight, tap).reshape(groups, -1, weight.shape[1])
        total += np.einsum("goc,bgcp->bgop", kernel, seen)
    bias = tensors["bias"].reshape(-1, *[1] * len(sizes))
    return np.asarray(total.reshape(len(x), -1, *sizes) + bias)


def _positions(tap: tuple[int, ...], spec: Mapping[str, Any], sizes: list[int]) -> list[slice]:
    """Return where one element of a window meets the padded input, for every position of the window."""
    steps = zip(tap, spec["dilation"], spec["stride"], sizes, strict=True)
    return [slice(k * d, k * d + s * (n - 1) + 1, s) for k, d, s, n in steps]


def _taken(x: np.ndarray, last: Sequence[slice | int]) -> np.ndarray:
    """Return the value indexed on its last axes."""
    index: tuple[Any, ...] = (..., *last)
    return np.asarray(x[index])


def _requantize(x: np.ndarray, tensors: Tensors, entry: Entry) -> np.ndarray:
    """Compare with the thresholds where there are any, else compute with multiplier, add and shift."""
    spec = entry["attributes"]
    if "threshold" in tensors:
        codes = spec["lo"] + sum((x >= each).astype(np.int64) for each in np.moveaxis(tensors["threshold"], -1, 0))
    else:
        codes = np.clip((x * tensors["multiplier"] + tensors["add"]) >> tensors["shift"], spec["lo"], spec["hi"])
    return np.asarray(spec.get("start", 0) + spec.get("step", 1) * codes)


def _check_thresholds(entry: Entry, tensors: Tensors, low: int, high: int) -> None:
    """Prove that the thresholds give the codes of multiplier, add and shift for every integer `low .. high`.

    The codes ascend, so it is enough to look at each threshold and at the integer before it.

    Raises:
        ProbqError: they do not.
    """
    spec, steps = entry["attributes"], tensors["threshold"]
    multiplier, add, shift = (tensors[key][..., None] for key in ("multiplier", "add", "shift"))
    codes = np.arange(spec["lo"] + 1, spec["hi"] + 1)
    reached = (steps > high) | ((np.minimum(steps, high) * multiplier + add) >> shift >= codes)
    below = (steps <= low) | ((np.maximum(steps - 1, low) * multiplier + add) >> shift < codes)
    if not (reached & below & (low <= steps) & (steps <= high + 1)).all() or (multiplier <= 0).any():
        raise ProbqError(f"the thresholds of node {entry['name']} do not agree with its multiplier, add and shift")


def _multiply(x: np.ndarray, tensors: Tensors, entry: Entry) -> np.ndarray:
    return x * tensors["multiplier"]


def _clip(x: np.ndarray, _: Tensors, entry: Entry) -> np.ndarray:
    lo, hi = entry["attributes"]["lo"], entry["attributes"]["hi"]
    low = np.iinfo(np.int64).min if lo is None else lo
    return np.minimum(np.maximum(x, low), np.iinfo(np.int64).max if hi is None else hi)


def _max_pool(x: np.ndarray, _: Tensors, entry: Entry) -> np.ndarray:
    """Return the maximum over windows.

    Padding holds the least integer, as far as the last window reaches.
    """
    spec = entry["attributes"]
    sizes = entry["shape"][len(entry["shape"]) - len(spec["kernel"]) :]
    reach = zip(spec["kernel"], spec["dilation"], spec["stride"], sizes, strict=True)
    ends = [(n - 1) * s + (k - 1) * d + 1 for k, d, s, n in reach]
    have = zip(ends, x.shape[x.ndim - len(sizes) :], spec["padding"], strict=True)
    added = [(low, max(high, end - n - low)) for end, n, (low, high) in have]
    outer = [(0, 0)] * (x.ndim - len(sizes))
    x = np.pad(x, outer + added, constant_values=np.iinfo(np.int64).min)
    taps = itertools.product(*map(range, spec["kernel"]))
    return np.maximum.reduce([_taken(x, _positions(tap, spec, sizes)) for tap in taps])


def _table(x: np.ndarray, tensors: Tensors, entry: Entry) -> np.ndarray:
    return np.take(tensors["table"], x - entry["attributes"]["first"])


def _repeat(x: np.ndarray, _: Tensors, entry: Entry) -> np.ndarray:
    """Ask, for every place on the last axes, which element stands there."""
    factors = entry["attributes"]["factors"]
    for axis, factor in enumerate(factors, x.ndim - len(factors)):
        x = x.take(np.arange(x.shape[axis] * factor) // factor, axis)
    return x


def _pad(x: np.ndarray, _: Tensors, entry: Entry) -> np.ndarray:
    pairs = [tuple(pair) for pair in entry["attributes"]["padding"]]
    return np.pad(x, [(0, 0)] * (x.ndim - len(pairs)) + pairs)


def _slice(x: np.ndarray, _: Tensors, entry: Entry) -> np.ndarray:
    spec = entry["attributes"]
    axis = spec["axis"] + (spec["axis"] >= 0)
    return x.take(np.arange(spec["start"], spec["stop"], spec["step"]), axis)


def _reshape(x: np.ndarray, _: Tensors, entry: Entry) -> np.ndarray:
    return x.reshape(len(x), *entry["attributes"]["shape"])


OPERATIONS: Mapping[str, Callable[[np.ndarray, Tensors, Entry], np.ndarray]] = MappingProxyType(
    {
        "input": _input, "linear": _linear, "conv": _conv, "requantize": _requantize, "max_pool": _max_pool,
        "reshape": _reshape, "clip": _clip, "multiply": _multiply, "table": _table,
        "repeat": _repeat, "pad": _pad, "slice": _slice,
    }
)  # fmt: skip
