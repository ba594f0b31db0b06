"""IntegerModel: a network of integers. Its one meaning is its int64 interpreter; every exporter is a function of it."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np

from probq import integer_format, signatures
from probq.errors import ProbqError
from probq.interpreter import as_array, evaluate, quantize
from probq.packing import Packing, size_in_bits, smallest

LAYERS = ("linear", "conv", "embedding")
CHUNK = 2**17  # input elements interpreted at once


@dataclass(frozen=True, eq=False)
class Node:
    """One operation of an integer model.

    Args:
        name: unique in the model, without a slash.
        op: an operation of `probq.interpreter.OPERATIONS`.
        inputs: names of the nodes whose outputs it takes.
        attributes: JSON-able; `probq.signatures` says which an operation takes. Shapes and axes leave out the batch.
        tensors: integer arrays, kept as int64.
        packing: how tensors are stored; those not named here on the smallest contiguous codebook.
        bound: proven largest magnitude of the output, below 2^53; 0 where none is known.

    Raises:
        ProbqError: a part is missing, unknown or of the wrong kind.
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    packing: dict[str, Packing] = field(default_factory=dict)
    bound: int = 0

    def __post_init__(self) -> None:
        try:
            self._canonicalise()
            signatures.check(self.op, len(self.inputs), self.tensors, self.attributes)
            for name, tensor in self.tensors.items():
                size_in_bits(tensor.shape, self.packing_of(name))
        except ProbqError as error:
            raise ProbqError(f"node {self.name!r:.80}: {error}") from error

    def _canonicalise(self) -> None:
        if not isinstance(self.name, str) or not self.name or "/" in self.name:
            raise ProbqError("a node's name is a string without a slash")
        if type(self.bound) is not int or not 0 <= self.bound < 2**53:
            raise ProbqError(f"bound must be an integer from 0 to 2^53 (exact arithmetic), not {self.bound!r:.80}")
        unknown = sorted(set(self.packing) - set(self.tensors))
        if unknown:
            raise ProbqError(f"there is packing for {unknown[0]!r}, but no such tensor")
        object.__setattr__(self, "inputs", tuple(self.inputs))
        object.__setattr__(self, "attributes", _json(self.attributes, "attributes"))
        tensors = {name: _int64(name, tensor) for name, tensor in self.tensors.items()}
        object.__setattr__(self, "tensors", tensors)

    def packing_of(self, tensor: str) -> Packing:
        """How the named tensor is stored."""
        return self.packing[tensor] if tensor in self.packing else smallest(self.tensors[tensor])

    @property
    def bits(self) -> int:
        """Bits that the codes of the node's tensors take."""
        return sum(size_in_bits(tensor.shape, self.packing_of(name)) for name, tensor in self.tensors.items())


def _json(value: Any, what: str) -> Any:
    """A copy as JSON reads it back, so that a model equals its file."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ProbqError(f"{what} must be JSON: {error}; convert arrays with tolist(), numbers with int()") from error


def _int64(name: str, tensor: Any) -> np.ndarray:
    tensor = np.asarray(tensor)
    if tensor.dtype.kind not in "iu":
        raise ProbqError(f"tensor {name} holds {tensor.dtype}; an integer model holds integers only")
    return tensor.astype(np.int64, copy=False)


def _chunks(x: np.ndarray) -> list[np.ndarray]:
    """Parts of a batch, at least one, of about CHUNK elements."""
    size = max(1, CHUNK // max(1, math.prod(x.shape[1:])))
    return [x[start : start + size] for start in range(0, max(1, len(x)), size)] if x.ndim else [x]


class IntegerModel:
    """A network of integers with one exact meaning; its real output is `model(x) * model.output_scale`.

    Args:
        nodes: operations in an order in which each comes after its inputs; one of them is the input.
        output: name of the node whose value is the result.
        output_scale: positive real value of one unit of the output.
        metadata: free JSON-able information, as widths, cost and versions.

    Raises:
        ProbqError: names repeat, an input is not an earlier node, or there is not exactly one input node.

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
        self.metadata: dict[str, Any] = _json(dict(metadata or {}), "metadata")
        if type(output_scale) not in (int, float) or not math.isfinite(output_scale) or output_scale <= 0:
            raise ProbqError(f"output_scale must be a positive finite float, not {output_scale!r:.80}")
        self.output_scale = float(output_scale)
        self._check_graph()

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
        """The node with operation `input`."""
        return next(node for node in self.nodes if node.op == "input")

    def quantize_input(self, x: Any) -> np.ndarray:
        """The integers that enter the first layer, int64 `[batch, ...]`: `clip(floor(x / scale + 1/2), lo, hi)`.

        Raises:
            ProbqError: the shape is wrong, or values are not finite, not real numbers or not valid indices.
        """
        return quantize(self.input, x)

    def __call__(self, x: Any) -> np.ndarray:
        """The output for a batch of real inputs (or indices), int64 `[batch, ...]`, in units of `output_scale`.

        Args:
            x: a numpy array or anything that numpy can read, as a torch tensor on the CPU.

        Raises:
            ProbqError: as `quantize_input`; or an operation does not fit its values, or would not be exact.
        """
        x = as_array(x)
        return np.concatenate([self._output(self.quantize_input(part)) for part in _chunks(x)])

    def run(self, integers: Any) -> np.ndarray:
        """The output for integers that `quantize_input` gave, int64 `[batch, ...]`.

        Raises:
            ProbqError: as `__call__`; or the integers leave the input's range.
        """
        integers = evaluate(self.input, np.asarray(integers))
        return np.concatenate([self._output(part) for part in _chunks(integers)])

    def _output(self, integers: np.ndarray) -> np.ndarray:
        last = {name: k for k, node in enumerate(self.nodes) for name in (*node.inputs, node.name)}
        last[self.output] = len(self.nodes)
        values: dict[str, np.ndarray] = {}
        for k, (name, value) in enumerate(self._walk(integers, values)):
            values[name] = value
            for done in [name for name in values if last[name] <= k]:
                del values[done]
        return values[self.output]

    def _walk(self, integers: np.ndarray, values: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        for node in self.nodes:
            inputs = [integers] if node.op == "input" else [values[name] for name in node.inputs]
            yield node.name, evaluate(node, *inputs)

    def values(self, integers: Any) -> dict[str, np.ndarray]:
        """Every node's output by name, int64 `[batch, ...]`, all held at once: for the tests of exporters."""
        values: dict[str, np.ndarray] = {}
        for name, value in self._walk(np.asarray(integers), values):
            values[name] = value
        return values

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a safetensors file: each tensor bit-packed at its own width, and a manifest in JSON.

        The same model always gives the same bytes. The file appears whole or not at all.

        Raises:
            ProbqError: the file cannot be written, or a tensor's value is not a level of its codebook.
        """
        integer_format.write(path, *self._content())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "IntegerModel":
        """Reads what `save` wrote; the file is data only, and every part of it is checked before it is used.

        Raises:
            ProbqError: there is no such file, or it is damaged, edited or of another kind.
        """
        manifest, tensors = integer_format.read(path)
        try:
            nodes = [
                Node(**entry, tensors=arrays, packing=packing)
                for entry, (arrays, packing) in zip(manifest.pop("nodes"), tensors, strict=True)
            ]
            return cls(nodes, **manifest)
        except ProbqError as error:
            raise ProbqError(f"{path} is not a valid integer model: {error}") from error

    def _content(self) -> tuple[str, dict[str, np.ndarray]]:
        return integer_format.describe(self.nodes, self.output, self.output_scale, self.metadata)

    def sha256(self) -> str:
        """Hash of everything the file holds, in hexadecimal; a loaded model has that of the saved one."""
        return hashlib.sha256(self._content()[0].encode()).hexdigest()

    def __repr__(self) -> str:
        layers = sum(node.op in LAYERS for node in self.nodes)
        bits = sum(node.bits for node in self.nodes)
        return f"IntegerModel({len(self.nodes)} nodes, {layers} layers, {bits:,} parameter bits)"
