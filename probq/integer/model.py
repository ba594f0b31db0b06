"""An integer model is a network of integers; its one meaning is its int64 interpreter, which every exporter follows."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from probq.integer import file_format
from probq.integer.interpreter import as_array, evaluate, quantize
from probq.integer.lengths.free_length import FreeLength
from probq.integer.loops.body import BEGINS, every_node
from probq.integer.node import Node, metadata_copy
from probq.integer.operations import LAYERS
from probq.integer.ports.axes import checked_axes, with_batch_first
from probq.integer.ports.entries import ports_from_entry, ports_to_entry
from probq.integer.ports.inputs import (
    check_arguments,
    given_inputs,
    joined_inputs,
    parts_of_batch,
    quantized_inputs,
    split_inputs,
)
from probq.integer.ports.outputs import Output, by_name, checked_scales, outputs_of, put_together, returned
from probq.integer.ranges import Range, ranges
from probq.integer.shapes import shapes_of
from probq.integer.sizes import check_count, check_sizes
from probq.utils.errors import ProbqError
from probq.utils.structures.walk import Structure, leaves


def _node(entry: dict[str, Any], tensors: file_format.Tensors) -> Node:
    """Return a node of a file."""
    arrays, packing = tensors
    body = tuple(_node(*each) for each in entry.pop("body", ()))
    return Node(**entry, tensors=arrays, packing=packing, body=body)


MOST_LENGTHS = 8  # of which models are kept


class IntegerModel:
    """An integer model is a network with one exact meaning; its real output is `model(x) * model.output_scale`.

    Where the network returns several tensors, `output` is the tuple, list, dictionary or named tuple of the names of
    their nodes, and results and `output_scale` are built alike; `real_output` multiplies them. Where several input
    nodes read what it is called with, integers are a dictionary by their names.

    Args:
        nodes: operations in an order in which each comes after its inputs; one of them, or more, are inputs.
        output: name of the node whose value is the result, or a structure of names; None and numbers in it stay.
        output_scale: positive real value of one unit of the output, for each where there are several.
        metadata: free JSON-able information, as widths, cost and versions.
        arguments: how the inputs are given: a tuple of the network's arguments, or a dictionary by keyword, of names
            that input nodes have, or have as `argument`, where several read one; by default the input itself.
        axes: the axis of the batch in what the model is called with and returns, where it is not the first, as of
            states `[layers, batch, features]`; by the names of arguments and of `outputs`. Integers have it first.
        lengths: how the model changes with the length of its inputs, where that is free (`probq.lower(free_axis=...)`);
            inputs of another length are then computed by `at_length`.

    Raises:
        ProbqError: names repeat, an input is not an earlier node, there is no input node, or several without
            `arguments`, shapes do not fit, one example takes memory or work out of proportion to the parameters, or an
            integer may leave exact arithmetic.

    Attributes:
        ranges: what every node's value may reach, and its shape, by name.

    >>> image = Node("x", "input", attributes={"shape": [2], "scale": 0.5, "lo": 0, "hi": 15})
    >>> layer = Node("fc", "linear", ("x",), tensors={"weight": np.array([[1, -2]]), "bias": np.array([3])})
    >>> model = IntegerModel([image, layer], "fc", 0.25)
    >>> model(np.array([[1.0, 0.25]]))
    array([[3]])
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        output: Structure,
        output_scale: Structure,
        metadata: Mapping[str, Any] | None = None,
        arguments: Structure = None,
        axes: Mapping[str, int] | None = None,
        lengths: FreeLength | None = None,
    ) -> None:
        self.nodes = tuple(nodes)
        self.output, self.arguments = output, arguments
        self.metadata = metadata_copy(metadata)
        self.output_scale = checked_scales(output, output_scale)
        check_count(len(self.every_node))
        self._check_graph()
        shapes = shapes_of(self.nodes)
        check_sizes(self.nodes, shapes, {output.node for output in self.outputs})
        self.ranges: Mapping[str, Range] = ranges(self.nodes, shapes)
        self.axes = checked_axes(axes, self.inputs, {one.name: self.ranges[one.node].shape for one in self.outputs})
        self.lengths, self._others = lengths, dict[int, IntegerModel]()
        if lengths is not None:
            lengths.check(self.nodes)
        self._largest = max(math.prod(shape) for shape in shapes.values())

    def _check_graph(self) -> None:
        names = [node.name for node in self.every_node]
        if len(set(names)) < len(names):
            twice = next(name for k, name in enumerate(names) if name in names[:k])
            raise ProbqError(f"two nodes are named {twice}; names must be unique")
        earlier: set[str] = set()
        for node in self.nodes:
            if node.op in BEGINS:
                raise ProbqError(f"node {node.name} ({node.op}) stands outside of a loop's body")
            for name in node.inputs:
                if name not in earlier:
                    raise ProbqError(f"node {node.name} takes {name!r:.80}, which is not an earlier node")
            earlier.add(node.name)
        for name in leaves(self.output):
            if isinstance(name, str) and name not in earlier:
                raise ProbqError(f"the output {name!r:.80} is not a node")
        check_arguments(self.inputs, self.arguments)

    @property
    def inputs(self) -> tuple[Node, ...]:
        """Return the nodes with operation `input`."""
        return tuple(node for node in self.nodes if node.op == "input")

    @property
    def every_node(self) -> tuple[Node, ...]:
        """Return the nodes, and after each loop or switch those of its body."""
        return tuple(every_node(self.nodes))

    @property
    def input(self) -> Node:
        """Return the node with operation `input`.

        Raises:
            ProbqError: there are several, which `inputs` holds.
        """
        if len(self.inputs) > 1:
            names = ", ".join(node.name for node in self.inputs)
            raise ProbqError(f"the model has {len(self.inputs)} inputs, {names}; take those of model.inputs")
        return self.inputs[0]

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Return the outputs in order, each with a name, that of its node, and its scale."""
        return outputs_of(self.output, self.output_scale)

    def quantize_input(self, x: Any) -> Any:
        """Return the integers that enter the first layer, `clip(floor(x / scale + 1/2), lo, hi)`, int64 `[batch, ...]`.

        Where there are several inputs, the result is a dictionary of them by the names of their nodes.

        Args:
            x: as `__call__` takes it.

        Raises:
            ProbqError: the shape is wrong, or values are not finite, not real numbers or not valid indices.
        """
        given = self._given(x)
        return joined_inputs(self.inputs, self._fitting(given)._quantized(given))

    def _quantized(self, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return quantized_inputs(self.inputs, given, quantize)

    def _given(self, x: Any) -> dict[str, np.ndarray]:
        """Return what each input node reads of what the model was called with."""
        found = {name: as_array(one) for name, one in given_inputs(self.inputs, self.arguments, x).items()}
        return with_batch_first(self.inputs, found, self.axes)

    def at_length(self, length: int) -> "IntegerModel":
        """Return the model for inputs of another length.

        Raises:
            ProbqError: the model has no free length, or at this one an integer may leave exact arithmetic.
        """
        if self.lengths is None:
            raise ProbqError("the model has inputs of one length; lower it with free_axis=1 to let that be free")
        nodes = self.lengths.at(self.nodes, length)
        lengths = FreeLength(length, self.lengths.slopes)
        return IntegerModel(nodes, self.output, self.output_scale, self.metadata, self.arguments, self.axes, lengths)

    def _fitting(self, given: Mapping[str, np.ndarray]) -> "IntegerModel":
        """Return the model at the length of what is given, itself unless that is free."""
        length = None if self.lengths is None else self.lengths.of(self.inputs, given)
        if self.lengths is None or length is None or length == self.lengths.length:
            return self
        if length not in self._others:
            if len(self._others) >= MOST_LENGTHS:
                self._others.clear()
            self._others[length] = self.at_length(length)
        return self._others[length]

    def __call__(self, x: Any) -> Any:
        """Return the output for a batch of real inputs (or indices), int64 `[batch, ...]`, in units of `output_scale`.

        Args:
            x: a numpy array or anything that numpy can read, as a torch tensor on the CPU; where the model has
                `arguments`, what is built like them.

        Raises:
            ProbqError: as `quantize_input`; or an operation does not fit its values, or would not be exact.
        """
        given = self._given(x)
        own = self._fitting(given)
        return returned(self.output, own._in_parts(given, own._quantized), self.axes)

    def run(self, integers: Any) -> Any:
        """Return the output for integers that `quantize_input` gave, int64 `[batch, ...]`, as artefacts compute it.

        Raises:
            ProbqError: as `__call__`; or the integers leave the input's range.
        """
        given = split_inputs(self.inputs, integers)
        own = self._fitting(given)
        return own._in_parts({node.name: evaluate(node, given[node.name]) for node in own.inputs}, dict)

    def real_output(self, integers: Any) -> Any:
        """Return what `run` gave as real numbers, each times its scale, float64 `[batch, ...]`, built alike."""
        found = by_name(self.output, integers)
        real = {output.node: found[output.name] * output.scale for output in self.outputs}
        return put_together(self.output, real)

    def _in_parts(self, x: Mapping[str, np.ndarray], integers_of: Callable[[Any], dict[str, np.ndarray]]) -> Any:
        found = [self._outputs(integers_of(part)) for part in parts_of_batch(x, self._largest)]
        return put_together(self.output, {name: np.concatenate([part[name] for part in found]) for name in found[0]})

    def _outputs(self, integers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        last = {name: k for k, node in enumerate(self.nodes) for name in (*node.inputs, node.name)}
        kept = {output.node for output in self.outputs}
        done: dict[int, list[str]] = {}
        for name in last.keys() - kept:
            done.setdefault(last[name], []).append(name)
        values: dict[str, np.ndarray] = {}
        for k, (name, value) in enumerate(self._walk(integers, values)):
            values[name] = value
            for old in done.get(k, ()):
                del values[old]
        return values

    def _walk(
        self, integers: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[str, np.ndarray]]:
        for node in self.nodes:
            inputs = [integers[node.name]] if node.op == "input" else [values[name] for name in node.inputs]
            yield node.name, evaluate(node, *inputs)

    def values(self, integers: Any) -> dict[str, np.ndarray]:
        """Return every node's output by name, int64 `[batch, ...]`, all held at once, for the tests of exporters."""
        values: dict[str, np.ndarray] = {}
        given = split_inputs(self.inputs, integers)
        for name, value in self._fitting(given)._walk(given, values):
            values[name] = value
        return values

    def save(self, path: str | PathLike[str]) -> None:
        """Write a safetensors file: each tensor bit-packed at its own width, and a manifest in JSON.

        The same model always gives the same bytes. The file appears whole or not at all.

        Raises:
            ProbqError: the file cannot be written, or a tensor's value is not a level of its codebook.
        """
        file_format.write(path, *self._content())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "IntegerModel":
        """Read what `save` wrote; the file is data only, and every part of it is checked before it is used.

        Raises:
            ProbqError: there is no such file, or it is damaged, edited or of another kind.
        """
        manifest, nodes = file_format.read(path)
        try:
            made = [_node(*each) for each in nodes]
            lengths = FreeLength.from_entry(manifest.get("lengths"))
            return cls(made, **ports_from_entry(manifest), metadata=manifest["metadata"], lengths=lengths)
        except ProbqError as error:
            raise ProbqError(f"{path} is not a valid integer model: {error}") from error

    def _content(self) -> tuple[str, dict[str, np.ndarray]]:
        ports = ports_to_entry(self.output, self.output_scale, self.arguments, self.axes)
        if self.lengths is not None:
            ports["lengths"] = self.lengths.to_entry()
        return file_format.describe(self.nodes, ports, self.metadata)

    def sha256(self) -> str:
        """Return the hash of everything the file holds, in hexadecimal; a loaded model has that of the saved one."""
        return hashlib.sha256(self._content()[0].encode()).hexdigest()

    def __repr__(self) -> str:
        layers = sum(node.op in LAYERS for node in self.every_node)
        bits = sum(node.bits for node in self.nodes)
        return f"IntegerModel({len(self.nodes)} nodes, {layers} layers, {bits:,} parameter bits)"
