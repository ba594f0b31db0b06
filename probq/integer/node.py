"""A node is one operation of an integer model with its attributes and integer tensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probq.integer.loops.body import check_body
from probq.integer.operations import check_operation
from probq.integer.packing import AnyPacking, smallest, stored_bits
from probq.utils.errors import ProbqError

MOST_DIGITS = 300  # of an integer; more are beyond float64


@dataclass(frozen=True, eq=False)
class Node:
    """A node is one operation of an integer model.

    Args:
        name: unique in the model, without a slash.
        op: an operation of `probq.integer.interpreter.OPERATIONS`.
        inputs: names of the nodes whose outputs it takes.
        attributes: JSON-able; `probq.integer.operations` says which an operation takes. Shapes leave out the batch.
        tensors: integer arrays, kept as int64.
        packing: how tensors are stored; those not named here on the smallest contiguous codebook.
        body: of a loop, the nodes that are computed at each time step (`probq.integer.loops.body`); of a switch, those
            of its branches (`probq.integer.switches.body`).
        bound: largest magnitude of the output as its maker proved it, below 2^53; 0 where none is known. A file only
            claims it: what is proven again is `IntegerModel.ranges`.

    Raises:
        ProbqError: a part is missing, unknown or of the wrong kind.
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    packing: dict[str, AnyPacking] = field(default_factory=dict)
    bound: int = 0
    body: tuple["Node", ...] = ()

    def __post_init__(self) -> None:
        try:
            self._canonicalise()
            check_operation(self.op, len(self.inputs), self.tensors, self.attributes)
            check_body(self)
            for name, tensor in self.tensors.items():
                stored_bits(tensor.shape, self.packing_of(name))
        except ProbqError as error:
            raise ProbqError(f"node {self.name!r:.80}: {error}") from error

    def _canonicalise(self) -> None:
        if not isinstance(self.name, str) or not self.name or "/" in self.name:
            raise ProbqError("a node's name is a string without a slash")
        try:
            self.name.encode()
        except UnicodeEncodeError as error:
            raise ProbqError("a node's name has half of a character, which no file holds; rename the layer") from error
        if type(self.bound) is not int or not 0 <= self.bound < 2**53:
            raise ProbqError(f"bound must be an integer from 0 to 2^53 (exact arithmetic), not {self.bound!r:.80}")
        unknown = sorted(set(self.packing) - set(self.tensors))
        if unknown:
            raise ProbqError(f"there is packing for {unknown[0]!r}, but no such tensor")
        object.__setattr__(self, "inputs", tuple(self.inputs))
        object.__setattr__(self, "body", tuple(self.body))
        if not all(isinstance(node, Node) for node in self.body):
            raise ProbqError("a body holds nodes, and nothing else")
        object.__setattr__(self, "attributes", json_copy(self.attributes, "attributes"))
        tensors = {name: _int64(name, tensor) for name, tensor in self.tensors.items()}
        object.__setattr__(self, "tensors", tensors)

    def packing_of(self, tensor: str) -> AnyPacking:
        """Return how the named tensor is stored."""
        return self.packing[tensor] if tensor in self.packing else smallest(self.tensors[tensor])

    @property
    def bits(self) -> int:
        """Return the bits that the tensors of the node and of its body take: codes, and tables of vectors."""
        own = sum(stored_bits(tensor.shape, self.packing_of(name)) for name, tensor in self.tensors.items())
        return own + sum(node.bits for node in self.body)


def json_copy(value: Any, what: str) -> Any:
    """Return a copy as JSON reads it back, so that what is saved equals what is loaded.

    Raises:
        ProbqError: the value, called `what`, is not JSON, or a number in it is beyond float64.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False, ensure_ascii=False).encode(), parse_int=_integer)
    except (TypeError, ValueError, RecursionError) as error:
        raise ProbqError(f"{what} must be JSON: {error}; convert arrays with tolist(), numbers with int()") from error


def metadata_copy(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return free information as JSON reads it back.

    Raises:
        ProbqError: it is no dict, or not JSON.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise ProbqError(f"metadata is a dict of free information, or None, not {metadata!r:.80}")
    copy: dict[str, Any] = json_copy(dict(metadata or {}), "metadata")
    return copy


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"{digits:.20}... is beyond float64")
    return int(digits)


def _int64(name: str, tensor: Any) -> np.ndarray:
    tensor = np.asarray(tensor)
    if tensor.dtype.kind not in "iu":
        raise ProbqError(f"tensor {name} holds {tensor.dtype}; an integer model holds integers only")
    return tensor.astype(np.int64, copy=False)
