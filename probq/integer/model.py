"""An integer model is a network of integers; its one meaning is its int64 interpreter, which every exporter follows."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from probq.integer import file_format
from probq.integer.interpreter import as_array, evaluate, quantize
from probq.integer.node import Node, metadata_copy
from probq.integer.operations import LAYERS
from probq.integer.ranges import Range, ranges
from probq.integer.shapes import Shape, shape_of
from probq.integer.sizes import check_count, check_sizes
from probq.utils.errors import ProbqError

CHUNK = 2**20  # elements of any value interpreted at once


def _chunks(x: np.ndarray, largest: int) -> list[np.ndarray]:
    """Return the parts of a batch, at least one.

    Each is such that a value of `largest` elements for one example has about CHUNK in all.
    """
    size = max(1, CHUNK // max(1, largest))
    return [x[start : start + size] for start in range(0, max(1, len(x)), size)] if x.ndim else [x]


class IntegerModel:
    """An integer model is a network with one exact meaning; its real output is `model(x) * model.output_scale`.

    Args:
        nodes: operations in an order in which each comes after its inputs; one of them is the input.
        output: name of the node whose value is the result.
        output_scale: positive real value of one unit of the output.
        metadata: free JSON-able information, as widths, cost and versions.

    Raises:
        ProbqError: names repeat, an input is not an earlier node, there is not exactly one input node, shapes do not
            fit, one example takes memory or work out of proportion to the parameters, or an integer may leave exact
            arithmetic.

    Attributes:
        ranges: what every node's value may reach, and its shape, by name.

    >>> image = Node("x", "input", attributes={"shape": [2], "scale": 0.5, "lo": 0, "hi": 15})
    >>> layer = Node("fc", "linear", ("x",), tensors={"weight": np.array([[1, -2]]), "bias": np.array([3])})
    >>> model = IntegerModel([image, layer], "fc", 0.25)
    >>> model(np.array([[1.0, 0.25]]))
    array([[3]])
    """

    def __init__(
        self, nodes: Sequence[Node], output: str, output_scale: float, metadata: Mapping[str, Any] | None = None
    ) -> None:
        self.nodes = tuple(nodes)
        self.output = output
        self.metadata = metadata_copy(metadata)
        if type(output_scale) not in (int, float) or not 0 < output_scale < 2**1024:
            raise ProbqError(f"output_scale must be a positive finite float, not {output_scale!r:.80}")
        self.output_scale = float(output_scale)
        check_count(self.nodes)
        self._check_graph()
        shapes: dict[str, Shape] = {}
        for node in self.nodes:
            shapes[node.name] = shape_of(node, [shapes[name] for name in node.inputs])
        check_sizes(self.nodes, shapes)
        self.ranges: Mapping[str, Range] = ranges(self.nodes, shapes)
        self._largest = max(math.prod(shape) for shape in shapes.values())

    def _check_graph(self) -> None:
        earlier: set[str] = set()
        for node in self.nodes:
            if node.name in earlier:
                raise ProbqError(f"two nodes are named {node.name}; names must be unique")
            for name in node.inputs:
                if name not in earlier:
                    raise ProbqError(f"node {node.name} takes {name!r:.80}, which is not an earlier node")
            earlier.add(node.name)
        if self.output not in earlier:
            raise ProbqError(f"the output {self.output!r:.80} is not a node")
        count = sum(node.op == "input" for node in self.nodes)
        if count != 1:
            raise ProbqError(f"a model has exactly one input node, not {count}")

    @property
    def input(self) -> Node:
        """Return the node with operation `input`."""
        return next(node for node in self.nodes if node.op == "input")

    def quantize_input(self, x: Any) -> np.ndarray:
        """Return the integers that enter the first layer, `clip(floor(x / scale + 1/2), lo, hi)`, int64 `[batch, ...]`.

        Raises:
            ProbqError: the shape is wrong, or values are not finite, not real numbers or not valid indices.
        """
        return quantize(self.input, x)

    def __call__(self, x: Any) -> np.ndarray:
        """Return the output for a batch of real inputs (or indices), int64 `[batch, ...]`, in units of `output_scale`.

        Args:
            x: a numpy array or anything that numpy can read, as a torch tensor on the CPU.

        Raises:
            ProbqError: as `quantize_input`; or an operation does not fit its values, or would not be exact.
        """
        x = as_array(x)
        return np.concatenate([self._output(self.quantize_input(part)) for part in _chunks(x, self._largest)])

    def run(self, integers: Any) -> np.ndarray:
        """Return the output for integers that `quantize_input` gave, int64 `[batch, ...]`.

        Raises:
            ProbqError: as `__call__`; or the integers leave the input's range.
        """
        integers = evaluate(self.input, np.asarray(integers))
        return np.concatenate([self._output(part) for part in _chunks(integers, self._largest)])

    def _output(self, integers: np.ndarray) -> np.ndarray:
        last = {name: k for k, node in enumerate(self.nodes) for name in (*node.inputs, node.name)}
        last[self.output] = len(self.nodes)
        done: dict[int, list[str]] = {}
        for name, k in last.items():
            done.setdefault(k, []).append(name)
        values: dict[str, np.ndarray] = {}
        for k, (name, value) in enumerate(self._walk(integers, values)):
            values[name] = value
            for old in done.get(k, ()):
                del values[old]
        return values[self.output]

    def _walk(self, integers: np.ndarray, values: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        for node in self.nodes:
            inputs = [integers] if node.op == "input" else [values[name] for name in node.inputs]
            yield node.name, evaluate(node, *inputs)

    def values(self, integers: Any) -> dict[str, np.ndarray]:
        """Return every node's output by name, int64 `[batch, ...]`, all held at once, for the tests of exporters."""
        values: dict[str, np.ndarray] = {}
        for name, value in self._walk(np.asarray(integers), values):
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
        manifest, tensors = file_format.read(path)
        try:
            nodes = [
                Node(**entry, tensors=arrays, packing=packing)
                for entry, (arrays, packing) in zip(manifest.pop("nodes"), tensors, strict=True)
            ]
            return cls(nodes, **manifest)
        except ProbqError as error:
            raise ProbqError(f"{path} is not a valid integer model: {error}") from error

    def _content(self) -> tuple[str, dict[str, np.ndarray]]:
        return file_format.describe(self.nodes, self.output, self.output_scale, self.metadata)

    def sha256(self) -> str:
        """Return the hash of everything the file holds, in hexadecimal; a loaded model has that of the saved one."""
        return hashlib.sha256(self._content()[0].encode()).hexdigest()

    def __repr__(self) -> str:
        layers = sum(node.op in LAYERS for node in self.nodes)
        bits = sum(node.bits for node in self.nodes)
        return f"IntegerModel({len(self.nodes)} nodes, {layers} layers, {bits:,} parameter bits)"
