"""These operations of an integer model only move or choose integers, or look them up in a table."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from probq.integer.node import Node
from probq.integer.windows import pad
from probq.utils.errors import ProbqError


def behind_batch(axis: int, x: np.ndarray) -> int:
    """Return the axis of a value with its batch, from the axis without.

    Raises:
        ProbqError: there is no such axis.
    """
    if not -(x.ndim - 1) <= axis < x.ndim - 1:
        raise ProbqError(f"axis {axis} of a value of shape {x.shape[1:]}")
    return axis + 1 if axis >= 0 else axis


def check_range(x: np.ndarray, lo: int, hi: int) -> None:
    """Refuse integers beyond `lo .. hi`.

    Raises:
        ProbqError: naming what was found.
    """
    if x.size and not lo <= x.min() <= x.max() <= hi:
        raise ProbqError(f"integers {x.min()} .. {x.max()} leave the range {lo} .. {hi}")


def _reshape(node: Node, x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), *node.attributes["shape"])


def _permute(node: Node, x: np.ndarray) -> np.ndarray:
    return x.transpose(0, *[behind_batch(axis, x) for axis in node.attributes["axes"]])


def _concat(node: Node, *values: np.ndarray) -> np.ndarray:
    return np.concatenate(values, axis=behind_batch(node.attributes["axis"], values[0]))


def _table(node: Node, x: np.ndarray) -> np.ndarray:
    """Return `table[x - first]`."""
    table, first = node.tensors["table"], node.attributes["first"]
    check_range(x, first, first + len(table) - 1)
    return table[x - first]


def _repeat(node: Node, x: np.ndarray) -> np.ndarray:
    """Return every element `factors[k]` times along the k-th of the last axes, which is nearest upsampling."""
    factors = node.attributes["factors"]
    if len(factors) >= x.ndim:
        raise ProbqError(f"factors for {len(factors)} axes of a value with {x.ndim - 1}")
    for axis, factor in enumerate(factors, x.ndim - len(factors)):
        x = np.repeat(x, factor, axis)
    return x


def _pad(node: Node, x: np.ndarray) -> np.ndarray:
    """Return the value with zeros around its last axes."""
    return pad(x, node.attributes["padding"], 0)


def _slice(node: Node, x: np.ndarray) -> np.ndarray:
    """Return `x[start : stop : step]` along one axis."""
    spec = node.attributes
    axis = behind_batch(spec["axis"], x) % x.ndim
    if not 0 <= spec["start"] < spec["stop"] <= x.shape[axis]:
        raise ProbqError(f"the slice {spec['start']} : {spec['stop']} of {x.shape[axis]} elements")
    return x[(slice(None),) * axis + (slice(spec["start"], spec["stop"], spec["step"]),)]


def _where(_: Node, mask: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the first value where a mask is not 0, and the second elsewhere; all broadcast behind the batch."""
    axes = max(mask.ndim, x.ndim, y.ndim)
    spread = (a.reshape(len(a), *[1] * (axes - a.ndim), *a.shape[1:]) for a in (mask != 0, x, y))
    return np.where(*spread)


def _argmax(node: Node, x: np.ndarray) -> np.ndarray:
    """Return the place of the largest integer along one axis, of the first one where several are."""
    return x.argmax(behind_batch(node.attributes["axis"], x)).astype(np.int64)


def _item(_: Node, x: np.ndarray) -> np.ndarray:
    return x


def _state(node: Node, x: np.ndarray) -> np.ndarray:
    check_range(x, node.attributes["lo"], node.attributes["hi"])
    return x


MOVES: Mapping[str, Callable[..., np.ndarray]] = MappingProxyType(
    {
        "reshape": _reshape, "permute": _permute, "concat": _concat, "table": _table, "repeat": _repeat, "pad": _pad,
        "slice": _slice, "where": _where, "argmax": _argmax, "item": _item, "state": _state,
    }
)  # fmt: skip
