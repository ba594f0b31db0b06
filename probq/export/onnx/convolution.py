"""A layer's weight with its geometry is an ordinary convolution; a transposed one is turned into that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from probq.export.onnx.graph import Edge, Graph
from probq.export.onnx.vector_parameters import PlacedVectors, placed
from probq.integer import Node
from probq.integer.packing import AnyPacking, Packing, smallest


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel is a weight and what ONNX's convolutions take beside it.

    Attributes:
        weight: integers, `[outputs, inputs / groups, *kernel]` or `[outputs, inputs]`.
        packing: how they are stored.
        attributes: the attributes of the ONNX operator; none for a linear layer.
        spread: distance at which a transposed convolution's inputs are laid out on every spatial axis.
        widen, crop: elements (low, high) added to the ends of every spatial axis after that, then cut off.
    """

    weight: np.ndarray
    packing: AnyPacking | PlacedVectors
    attributes: dict[str, Any]
    spread: tuple[int, ...] = ()
    widen: tuple[tuple[int, int], ...] = ()
    crop: tuple[tuple[int, int], ...] = ()

    def reshaped(self, function: Callable[[np.ndarray], np.ndarray]) -> Kernel:
        """Return the kernel with a function applied that only moves the weight's elements."""
        weight = function(self.weight)
        if isinstance(self.packing, Packing):
            return replace(self, weight=weight, packing=moved(self.packing, self.weight.shape, function))
        before = self.packing if isinstance(self.packing, PlacedVectors) else placed(self.packing, self.weight.shape)
        after = before.moved(function)
        return replace(self, weight=weight, packing=after if after.can_be_transposed else smallest(weight))

    def rows(self, node: Node) -> np.ndarray:
        """Return the weight as `[outputs, products]`."""
        return self.weight.reshape(len(node.tensors["bias"]), -1)

    def prepared(self, graph: Graph, x: Edge) -> str:
        """Add what an ordinary convolution's input needs before it: zeros between elements, ends cut off."""
        name, sizes = x.name, list(x.shape[1:])
        if any(step > 1 for step in self.spread):
            name = _spread(graph, x, self.spread)
            sizes = [(size - 1) * step + 1 for size, step in zip(sizes, self.spread, strict=True)]
        if any(end for pair in self.widen for end in pair):
            pads = graph.constant(_pads([(0, 0), (0, 0), *self.widen]), "int64")
            name = graph.node("Pad", [name, pads, graph.constant(x.zero, x.type)])
            sizes = [size + low + high for size, (low, high) in zip(sizes, self.widen, strict=True)]
        if any(end for pair in self.crop for end in pair):
            starts = [low for low, _ in self.crop]
            ends = [size - high for size, (_, high) in zip(sizes, self.crop, strict=True)]
            name = sliced(graph, name, starts, ends, range(2, 2 + len(sizes)))
        return name


def kernel(node: Node) -> Kernel:
    """Return the weight and geometry of a linear layer or a convolution."""
    plain = Kernel(node.tensors["weight"], node.packing_of("weight"), {})
    if node.op == "linear":
        return plain
    spec = node.attributes
    attributes = {"dilations": spec["dilation"], "group": spec["groups"]}
    if not spec["transposed"]:
        pads = _pads([tuple(pair) for pair in spec["padding"]])
        return replace(plain, attributes=attributes | {"strides": spec["stride"], "pads": pads})
    sizes = node.tensors["weight"].shape[2:]
    extra = spec.get("output_padding") or [0] * len(sizes)
    reach = [d * (k - 1) for k, d in zip(sizes, spec["dilation"], strict=True)]
    ends = [(r - low, r - high + e) for r, (low, high), e in zip(reach, spec["padding"], extra, strict=True)]
    added = tuple((max(low, 0), max(high, 0)) for low, high in ends)
    crop = tuple((max(-low, 0), max(-high, 0)) for low, high in ends)
    upright = replace(plain.reshaped(lambda weight: _upright(weight, spec["groups"])), spread=tuple(spec["stride"]))
    attributes["strides"] = [1] * len(sizes)
    if any(end for pair in crop for end in pair):  # what is cut off may have been added at the other end
        return replace(upright, attributes=attributes, widen=added, crop=crop)
    return replace(upright, attributes=attributes | {"pads": _pads(list(added))})


def _upright(weight: np.ndarray, groups: int) -> np.ndarray:
    """Return `[inputs, outputs / groups, *kernel]` as `[outputs, inputs / groups, *flipped kernel]`."""
    weight = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    weight = weight.reshape(-1, *weight.shape[2:])
    return np.flip(weight, tuple(range(2, weight.ndim)))


def _pads(ends: list[Any]) -> list[int]:
    """Return the ends as ONNX takes them, all lower ones before all upper ones."""
    return [low for low, _ in ends] + [high for _, high in ends]


def moved(packing: Packing, shape: tuple[int, ...], function: Callable[[np.ndarray], np.ndarray]) -> Packing:
    """Return the packing of a tensor whose elements a function has moved."""
    if packing.rung.size == 1:
        return Packing(packing.codebooks, packing.rung.reshape(()))
    rung = function(np.broadcast_to(packing.rung, shape))
    for axis in range(rung.ndim):
        first = rung.take([0], axis)
        rung = first if (rung == first).all() else rung
    return Packing(packing.codebooks, rung)


def sliced(graph: Graph, name: str, starts: list[int], ends: list[int], axes: Any, steps: Any = None) -> str:
    """Add a slice over some axes of a tensor with its batch."""
    given = [starts, ends, list(axes), *([] if steps is None else [steps])]
    return graph.node("Slice", [name, *(graph.constant(numbers, "int64") for numbers in given)])


def _spread(graph: Graph, x: Edge, spread: tuple[int, ...]) -> str:
    """Add zeros between the elements of every spatial axis: `[batch, channels, *((size - 1) step + 1)]`."""
    channels, *sizes = x.shape
    apart = [n for size in sizes for n in (size, 1)]
    name = graph.reshape(x.name, [channels, *apart])
    behind = [n for step in spread for n in (0, step - 1)]
    pads = graph.constant([0] * (2 + len(apart)) + [0, 0, *behind], "int64")
    name = graph.node("Pad", [name, pads, graph.constant(x.zero, x.type)])
    name = graph.reshape(name, [channels, *(size * step for size, step in zip(sizes, spread, strict=True))])
    ends = [(size - 1) * step + 1 for size, step in zip(sizes, spread, strict=True)]
    return sliced(graph, name, [0] * len(sizes), ends, range(2, 2 + len(sizes)))
