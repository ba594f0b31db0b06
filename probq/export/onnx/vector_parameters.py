"""An ONNX file has weights of vectors as their table and codes, with the operators that look them up.

Everything here works on constants, so ONNX Runtime computes it once, when it loads the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from probq.export.onnx.graph import Graph
from probq.integer.packing import VectorPacking


@dataclass(frozen=True, eq=False)
class PlacedVectors:
    """Placed vectors are a tensor of vectors whose elements have been moved.

    Attributes:
        packing: of the tensor as it was.
        shape: the shape that it had.
        origin: for each element where it is now, the place where it was, counted in C order.
    """

    packing: VectorPacking
    shape: tuple[int, ...]
    origin: np.ndarray

    def moved(self, function: Callable[[np.ndarray], np.ndarray]) -> PlacedVectors:
        """Return the tensor after a function that moves its elements."""
        return replace(self, origin=function(self.origin))

    @property
    def can_be_transposed(self) -> bool:
        """Return whether a `Transpose` between two `Reshape` moves the elements to where they are."""
        return as_transpose(self.origin) is not None

    def looked_up(self, graph: Graph, values: np.ndarray, type: str, zero: int, codes_of: CodesOf) -> str:
        """Add the table, the codes and the operators that make `values + zero`; return the tensor's name.

        Args:
            graph: in the making.
            values: the tensor as it is now.
            type: of its elements.
            zero: its zero point.
            codes_of: adds codes, given their number `K`, as int32.
        """
        table = self.packing.table
        before = np.empty(values.size, np.int64)
        before[self.origin.reshape(-1)] = values.reshape(-1)
        codes = self.packing.codes(before.reshape(self.shape))
        first = np.arange(codes.size) % len(table) * table.shape[1]  # all tables one behind the other
        index = codes_of(graph, codes, table.shape[1])
        if len(table) > 1:
            index = graph.node("Reshape", [index, graph.constant([-1, len(table)], "int64")])
            index = graph.node("Add", [index, graph.constant(first[: len(table)], "int32")])
            index = graph.node("Reshape", [index, graph.constant([-1], "int64")])
        rows = graph.constant(table.reshape(-1, table.shape[2]) + zero, type)
        name = graph.node("Gather", [rows, index], axis=0)
        sizes, order = as_transpose(self.origin) or ([], [])
        if order != sorted(order):
            name = graph.node("Reshape", [name, graph.constant(sizes, "int64")])
            name = graph.node("Transpose", [name], perm=order)
        return graph.node("Reshape", [name, graph.constant(values.shape, "int64")])


# Adds codes below `K` to a graph, and returns their name.
CodesOf = Callable[[Graph, np.ndarray, int], str]


def placed(packing: VectorPacking, shape: tuple[int, ...]) -> PlacedVectors:
    """Return the vectors of a tensor of a shape, none of them moved."""
    return PlacedVectors(packing, shape, np.arange(np.prod(shape, dtype=np.int64)).reshape(shape))


def as_transpose(origin: np.ndarray) -> tuple[list[int], list[int]] | None:
    """Return sizes to reshape to and the order of axes to transpose to, or None where there are none.

    Example:
        >>> as_transpose(np.arange(6).reshape(2, 3).T)
        ([2, 3], [1, 0])
    """
    rest, axes = origin.reshape(-1), list[tuple[int, int]]()
    while rest.size > 1:  # the last axis of what is left: as long as its places are equally far apart
        step = int(rest[1] - rest[0])
        steps = np.diff(rest)
        length = int(np.argmax(steps != step)) + 1 if (steps != step).any() else rest.size
        if step < 1 or rest.size % length:
            return None
        axes.append((length, step))
        rest = rest[::length]
    axes.reverse()
    order = sorted(range(len(axes)), key=lambda k: -axes[k][1])
    sizes = [axes[k][0] for k in order]
    found = np.arange(origin.size).reshape(sizes).transpose(np.argsort(order))
    return (sizes, np.argsort(order).tolist()) if np.array_equal(found.reshape(-1), origin.reshape(-1)) else None
