"""Graphs of one model at several lengths become one graph, which computes what differs from the length of its input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from probq.integer import IntegerModel
from probq.utils.errors import ProbqError
from probq.utils.optional_import import require

LENGTH = "length"


def models_at(model: IntegerModel) -> list[IntegerModel]:
    """Return a model with a free length at several of them, itself first.

    Raises:
        ProbqError: values may reach more at greater lengths, so that their types would not hold them.
    """
    assert model.lengths is not None
    first = model.lengths.length
    found = [model, *(model.at_length(n) for n in (first + 1, first + 2, 8 * first + 5))]
    for name, reached in model.ranges.items():
        ends = {(one.ranges[name].low, one.ranges[name].high) for one in found}
        if len(ends) > 1:
            raise ProbqError(
                f"node {name} may reach {reached.low:,} to {reached.high:,} at length {first}, and more at greater "
                "ones, so that no type is proven to hold it; write model.at_length(n) for each length"
            )
    return found


def with_dynamic_axis(protos: Sequence[Any], lengths: Sequence[int]) -> Any:
    """Return one ONNX model of several.

    Args:
        protos: a model at several lengths; the first one is changed.
        lengths: those.

    Raises:
        ProbqError: something else differs than constants of whole numbers that grow evenly.
    """
    proto, merged = protos[0], _Merged([one.graph for one in protos], lengths)
    merged.nodes([one.graph.node for one in protos])
    for kind in ("input", "output"):
        for same in zip(*(getattr(one.graph, kind) for one in protos), strict=True):
            _free_dimensions(same, lengths)
    inserted = merged.computed(proto.graph.input)
    nodes = [*inserted, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    read = set(_names(nodes)) | {one.name for one in proto.graph.output}
    kept = [one for one in proto.graph.initializer if one.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend([*kept, *merged.constants()])
    require("onnx.checker", "onnx").check_model(proto)
    return proto


class _Merged:
    """This is what differs between graphs, as far as it was found."""

    def __init__(self, graphs: Sequence[Any], lengths: Sequence[int]) -> None:
        to_array = require("onnx.numpy_helper", "onnx").to_array
        self.lengths = lengths
        self.values = [{one.name: to_array(one) for one in graph.initializer} for graph in graphs]
        self.found: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # value at the first length, and slope

    def nodes(self, graphs: Sequence[Any]) -> None:
        """Compare nodes, and let those of the first graph read what is computed."""
        if len({len(nodes) for nodes in graphs}) > 1:
            raise _otherwise("there are more operators")
        for same in zip(*graphs, strict=True):
            first = same[0]
            if any((one.op_type, list(one.output)) != (first.op_type, list(first.output)) for one in same):
                raise _otherwise(f"{first.op_type} is another operator")
            for place, names in enumerate(zip(*(one.input for one in same), strict=True)):
                first.input[place] = self._name(names)
            for parts in zip(*(one.attribute for one in same), strict=True):
                if parts[0].HasField("g"):
                    self.nodes([part.g.node for part in parts])
                elif any(part != parts[0] for part in parts):
                    raise _otherwise(f"{first.op_type} has another {parts[0].name}")

    def _name(self, names: Sequence[str]) -> str:
        """Return what the first graph reads in the place of what each of them does."""
        arrays = [own.get(name) for own, name in zip(self.values, names, strict=True)]
        if any(array is None for array in arrays):
            if len(set(names)) > 1:
                raise _otherwise(f"{names[0]} is another value")
            return names[0]
        first: Any = arrays[0]
        if all(np.array_equal(first, array) for array in arrays):  # type: ignore[arg-type]
            return names[0]
        if any(array.dtype != np.int64 or array.shape != first.shape or array.ndim != 1 for array in arrays):  # type: ignore[union-attr]
            raise _otherwise(f"the constant {names[0]:.80} is another one")
        slope = (arrays[1] - first) // (self.lengths[1] - self.lengths[0])
        grown = [first + slope * (n - self.lengths[0]) for n in self.lengths]
        if any((own != array).any() for own, array in zip(grown, arrays, strict=True)):
            raise _otherwise(f"the constant {names[0]:.80} does not grow evenly")
        name = f"{LENGTH} {first.tolist()} {slope.tolist()}"
        self.found[name] = first, slope
        return name

    def computed(self, inputs: Sequence[Any]) -> list[Any]:
        """Return nodes that compute what differs from the length of an input.

        Args:
            inputs: of the graph, with the free dimension named.
        """
        if not self.found:
            return []
        make = require("onnx.helper", "onnx").make_node
        source, axis = next(
            (one.name, k) for one in inputs for k, dim in enumerate(one.type.tensor_type.shape.dim)
            if dim.dim_param == LENGTH
        )  # fmt: skip
        self.axis = axis
        nodes = [
            make("Shape", [source], [f"{LENGTH} shape"]),
            make("Gather", [f"{LENGTH} shape", f"{LENGTH} axis"], [LENGTH], axis=0),
            make("Sub", [LENGTH, f"{LENGTH} first"], [f"{LENGTH} more"]),
        ]
        for name in self.found:
            nodes.append(make("Mul", [f"{LENGTH} more", f"{name} slope"], [f"{name} more"]))
            nodes.append(make("Add", [f"{name} first", f"{name} more"], [name]))
        return nodes

    def constants(self) -> list[Any]:
        """Return the constants of those."""
        if not self.found:
            return []
        made = {f"{LENGTH} axis": np.array([self.axis]), f"{LENGTH} first": np.array([self.lengths[0]])}
        for name, (first, slope) in self.found.items():
            made |= {f"{name} first": first, f"{name} slope": slope}
        to_tensor = require("onnx.numpy_helper", "onnx").from_array
        return [to_tensor(value.astype(np.int64), name) for name, value in made.items()]


def _free_dimensions(same: Sequence[Any], lengths: Sequence[int]) -> None:
    """Name the dimensions of the first of several tensors that differ."""
    shapes = [one.type.tensor_type.shape.dim for one in same]
    for place, dims in enumerate(zip(*shapes, strict=True)):
        sizes = [dim.dim_value for dim in dims]
        if len(set(sizes)) > 1:
            dims[0].dim_param = LENGTH if sizes == list(lengths) else f"{LENGTH} of {same[0].name}, axis {place}"


def _names(nodes: Sequence[Any]) -> Iterator[str]:
    """Yield the names that nodes read, those in graphs within them too."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            yield from _names(attribute.g.node)
            yield from (one.name for one in attribute.g.output)


def _otherwise(what: str) -> ProbqError:
    return ProbqError(f"at another length {what}, so that no one file holds it; write model.at_length(n) for each")
