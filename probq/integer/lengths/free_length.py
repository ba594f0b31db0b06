"""Attributes of nodes, such as shapes, that grow with the length of inputs say what a model is at another length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from probq.integer.loops.body import every_node
from probq.utils.arguments import is_count
from probq.utils.errors import ProbqError

LONGEST = 2**24
FIELDS = frozenset({"length", "slopes"})


@dataclass(frozen=True)
class FreeLength:
    """A free length says what a model's attributes are at length `n`: those it has, plus `slope * (n - length)`.

    Args:
        length: at which the model's attributes are as they are.
        slopes: by node and attribute, integers nested as the attribute is.
    """

    length: int
    slopes: Mapping[str, Mapping[str, Any]]

    def at(self, nodes: Sequence[Any], length: int) -> tuple[Any, ...]:
        """Return the nodes of a model at another length.

        Raises:
            ProbqError: the length is no whole number from 1, or an attribute is not nested as its slopes.
        """
        if not is_count(length, 1) or length > LONGEST:
            raise ProbqError(f"a length is a whole number from 1 to {LONGEST:,}, not {length!r:.80}")
        return tuple(self._at(node, length - self.length) for node in nodes)

    def _at(self, node: Any, more: int) -> Any:
        body = tuple(self._at(inner, more) for inner in node.body)
        moved = {
            key: _moved(node.attributes.get(key), own, more) for key, own in self.slopes.get(node.name, {}).items()
        }
        return replace(node, attributes={**node.attributes, **moved}, body=body, bound=node.bound if not more else 0)

    def of(self, inputs: Sequence[Any], given: Mapping[str, np.ndarray]) -> int:
        """Return the length of what is given, by the names of input nodes; that of the model where none tells.

        Args:
            inputs: nodes, as the model has them.
            given: arrays, the batch first.
        """
        for node in inputs:
            shape, own = given[node.name].shape[1:], self.slopes.get(node.name, {}).get("shape", ())
            for size, before, slope in zip(shape, node.attributes["shape"], own, strict=False):
                if slope:
                    return max(1, self.length + (size - before) // slope)
        return self.length

    def check(self, nodes: Sequence[Any]) -> None:
        """Raise unless slopes are those of attributes that nodes have, and of an input's shape.

        Raises:
            ProbqError: saying which is not.
        """
        named = {node.name: node for node in every_node(nodes)}
        for name, own in self.slopes.items():
            if name not in named:
                raise ProbqError(f"there is a length for {name!r:.80}, which is no node")
            for key, slope in own.items():
                _moved(named[name].attributes.get(key), slope, 0)
        inputs = [node.name for node in nodes if node.op == "input"]
        if not any(any(self.slopes.get(name, {}).get("shape", ())) for name in inputs):
            raise ProbqError("a model with a free length has an input whose shape depends on it, and this has none")

    def to_entry(self) -> dict[str, Any]:
        """Return what JSON holds."""
        return {"length": self.length, "slopes": {name: dict(own) for name, own in self.slopes.items()}}

    @classmethod
    def from_entry(cls, entry: Any) -> FreeLength | None:
        """Return what a file says.

        Raises:
            ProbqError: it is no free length.
        """
        if entry is None:
            return None
        if not isinstance(entry, Mapping) or set(entry) != FIELDS or not is_count(entry["length"], 1):
            raise ProbqError(f"lengths are a length and slopes, not {entry!r:.80}")
        slopes = entry["slopes"]
        if not isinstance(slopes, Mapping) or not all(isinstance(own, Mapping) for own in slopes.values()):
            raise ProbqError("slopes are attributes by the names of nodes")
        return cls(entry["length"], slopes)


def _moved(value: Any, slope: Any, more: int) -> Any:
    """Return an attribute at another length."""
    if isinstance(value, list) and isinstance(slope, list) and len(value) == len(slope):
        return [_moved(one, own, more) for one, own in zip(value, slope, strict=True)]
    if type(value) is not int or type(slope) is not int or abs(slope) > LONGEST:
        raise ProbqError(f"an attribute {value!r:.80} does not grow by {slope!r:.80}")
    return value + slope * more


def free_length(lengths: Sequence[int], models: Sequence[Sequence[Any]]) -> FreeLength:
    """Return how the attributes of one network's nodes grow, of those at several lengths; the first are those to hold.

    Args:
        lengths: three or more.
        models: the nodes at each.

    Raises:
        ProbqError: something else differs, or grows otherwise than by a constant for each step.
    """
    slopes: dict[str, dict[str, Any]] = {}
    every = [list(every_node(nodes)) for nodes in models]
    if len({tuple((node.name, node.op, node.inputs) for node in nodes) for nodes in every}) > 1:
        raise ProbqError("the integer model has other operations at other lengths; lower it with an example of each")
    for same in zip(*every, strict=True):
        first = same[0]
        where = f"node {first.name} ({first.op})"
        if any(not _equal(first.tensors, other.tensors) for other in same[1:]):
            raise ProbqError(
                f"{where} has other numbers at other lengths, as an average over the length or what is learned for "
                "each place; lower it with an example of each length"
            )
        for key in first.attributes:
            found = _slope([node.attributes.get(key) for node in same], lengths, f"{where}: its {key}")
            if found is not None and any(np.ravel(_flat(found))):
                slopes.setdefault(first.name, {})[key] = found
    return FreeLength(lengths[0], slopes)


def _equal(ones: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> bool:
    return set(ones) == set(others) and all(np.array_equal(one, others[name]) for name, one in ones.items())


def _slope(values: Sequence[Any], lengths: Sequence[int], where: str) -> Any:
    """Return by how much an attribute grows; None where it is no integer or list of them, and stays."""
    first = values[0]
    if all(isinstance(value, list) and len(value) == len(first) for value in values) and _whole(first):
        return [_slope(each, lengths, where) for each in zip(*values, strict=True)]
    if all(type(value) is int for value in values):
        slope = (values[1] - first) // (lengths[1] - lengths[0])
        if all(value == first + slope * (n - lengths[0]) for value, n in zip(values, lengths, strict=True)):
            return slope
    if any(value != first for value in values):
        raise ProbqError(f"{where} does not grow evenly with the length; lower it with an example of each length")
    return None


def _whole(value: Any) -> bool:
    return all(_whole(one) for one in value) if isinstance(value, list) else type(value) is int


def _flat(value: Any) -> list[int]:
    return [one for part in value for one in _flat(part)] if isinstance(value, list) else [value]
