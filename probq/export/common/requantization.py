"""A requantization directly behind a layer is a bias and a power of two, which floating-point targets can round."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from probq.integer import IntegerModel, Node


@dataclass(frozen=True)
class Shift:
    """A shift is `code = floor((acc + add) / 2^shift)`, clipped as the requantization is; int64 arrays `[outputs]`.

    A negative shift multiplies.
    """

    add: np.ndarray
    shift: np.ndarray

    @property
    def rounding(self) -> np.ndarray:
        """Return what to add to the accumulator so that rounding to nearest gives the code.

        It is `add - 2^(shift - 1)`, int64.
        """
        return self.add - np.where(self.shift > 0, np.left_shift(1, np.maximum(self.shift, 1) - 1), 0)


def only_readers(model: IntegerModel) -> dict[str, Node]:
    """Return the node that alone reads a node's output, by the name of the node it reads.

    There is none where that output is a result.
    """
    return readers_among(model.nodes, {output.node for output in model.outputs})


def readers_among(nodes: Iterable[Node], results: Collection[str]) -> dict[str, Node]:
    """Return the same for nodes with these results."""
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    return {name: found[0] for name, found in readers.items() if len(found) == 1 and name not in results}


def pairs(model: IntegerModel) -> dict[str, Node]:
    """Return each layer of which a requantization is the only reader, by the layer's name."""
    layers = [node.name for node in model.nodes if node.op in ("linear", "conv")]
    readers = only_readers(model)
    return {name: readers[name] for name in layers if name in readers and readers[name].op == "requantize"}


def per_channel(tensor: np.ndarray, layer: Node, rank: int) -> np.ndarray | None:
    """Return a requantization's tensor as one number per output channel of the layer, `[outputs]`.

    The result is None if it varies within a channel.

    Args:
        tensor: broadcasts to the layer's output without the batch.
        layer: linear (channels on the last axis) or conv (on the first).
        rank: axes of the layer's output without the batch.
    """
    axis = rank - 1 if layer.op == "linear" else 0
    full = tensor.reshape([1] * (rank - tensor.ndim) + list(tensor.shape))
    if any(size != 1 for k, size in enumerate(full.shape) if k != axis):
        return None
    return np.broadcast_to(full.reshape(-1), len(layer.tensors["bias"])).astype(np.int64)


def numbers(requantize: Node, layer: Node, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | str:
    """Return the multiplier, addend and shift of a layer's requantization, int64 `[outputs]`, or why there are none."""
    parts = [per_channel(requantize.tensors[name], layer, rank) for name in ("multiplier", "add", "shift")]
    multiplier, add, shift = parts
    if multiplier is None or add is None or shift is None:
        return "its requantization differs within an output channel"
    return multiplier, add, shift


def as_shift(requantize: Node, layer: Node, rank: int) -> Shift | str:
    """Return the requantization of a layer as a shift, or why it is none."""
    found = numbers(requantize, layer, rank)
    return found if isinstance(found, str) else to_shift(*found)


def to_shift(multiplier: np.ndarray, add: np.ndarray, shift: np.ndarray) -> Shift | str:
    """Return `floor((acc multiplier + add) / 2^shift)` without the multiplier, or why there is no such form.

    With `multiplier = 2^k` and `n = shift - k` it is `floor((acc + floor(add / 2^k)) / 2^n)`.

    All are int64 arrays of one shape.
    """
    if (multiplier <= 0).any() or (multiplier & (multiplier - 1)).any():
        return "its multiplier is no power of two"
    k = np.frexp(multiplier.astype(np.float64))[1].astype(np.int64) - 1
    n = shift - k
    whole = np.where(n >= 0, add >> k, add >> shift)
    if (whole % np.left_shift(1, np.maximum(-n, 0)) != 0).any():
        return "its addend is finer than its step"
    return Shift(np.where(n >= 0, whole, whole >> np.maximum(-n, 0)), n)
