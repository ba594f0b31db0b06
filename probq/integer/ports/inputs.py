"""A model is called with one array, or with a structure of arrays that its input nodes read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from probq.integer.ports.matching import matched
from probq.utils.errors import ProbqError
from probq.utils.structures.walk import Structure, leaves, map_leaves

CALL = "what the model is called with"
CHUNK = 2**20  # elements of any value interpreted at once


def argument_of(node: Any) -> str:
    """Return the name of what an input node reads: its own, unless another node reads the same."""
    return str(node.attributes.get("argument", node.name))


def check_arguments(inputs: Sequence[Any], arguments: Structure) -> None:
    """Raise unless every input node reads one of the arguments, or there is one input alone.

    Raises:
        ProbqError: saying which does not.
    """
    if not inputs:
        raise ProbqError("a model has at least one input node, and this has none")
    names = [leaf for leaf in leaves(arguments) if isinstance(leaf, str)]
    if arguments is None and len(inputs) == 1:
        return
    if arguments is None:
        raise ProbqError(f"a model of {len(inputs)} input nodes needs arguments, which say how they are given")
    if len(set(names)) != len(names):
        raise ProbqError("two of the arguments have one name; names must be unique")
    for node in inputs:
        if argument_of(node) not in names:
            raise ProbqError(f"node {node.name} reads {argument_of(node)!r:.80}, which is not among the arguments")
    shapes: dict[str, Any] = {}
    for node in inputs:
        if shapes.setdefault(argument_of(node), node.attributes["shape"]) != node.attributes["shape"]:
            raise ProbqError(f"two nodes read {argument_of(node)!r:.80} in different shapes")


def given_inputs(inputs: Sequence[Any], arguments: Structure, x: Any) -> dict[str, Any]:
    """Return what each input node reads of what a model is called with, by the nodes' names.

    Raises:
        ProbqError: it is not built like the arguments.
    """
    if arguments is None:
        return {inputs[0].name: x}
    found = matched(arguments, x, CALL)
    return {node.name: found[argument_of(node)] for node in inputs}


def quantized_inputs(
    inputs: Sequence[Any], given: Mapping[str, Any], quantize: Callable[[Any, Any], np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the integers of each input node, with its name in what is wrong where there are several.

    Args:
        inputs: the nodes.
        given: what each reads, by name.
        quantize: what gives the integers of a node.

    Raises:
        ProbqError: as `quantize`.
    """
    found = {}
    for node in inputs:
        try:
            found[node.name] = quantize(node, given[node.name])
        except ProbqError as error:
            raise error if len(inputs) == 1 else ProbqError(f"{node.name}: {error}") from error
    return found


def put_together_call(arguments: Structure, values: Mapping[str, np.ndarray], axes: Mapping[str, int]) -> Any:
    """Return what a model is called with; zeros where no node reads it.

    Args:
        arguments: of the model.
        values: what is given for each argument by name, the batch first.
        axes: of the batch in what the model is called with, where it is not the first.
    """
    if arguments is None:
        return next(iter(values.values()))
    given = {name: np.moveaxis(value, 0, axes.get(name, 0)) for name, value in values.items()}
    count = len(next(iter(values.values())))
    return map_leaves(lambda name: given.get(name, np.zeros(count)) if isinstance(name, str) else name, arguments)


def joined_inputs(inputs: Sequence[Any], integers: Mapping[str, np.ndarray]) -> Any:
    """Return the integers of a model's inputs as `run` takes them: an array, or a dictionary of several."""
    return dict(integers) if len(inputs) > 1 else integers[inputs[0].name]


def split_inputs(inputs: Sequence[Any], integers: Any) -> dict[str, np.ndarray]:
    """Return the integers of each input node by its name.

    Raises:
        ProbqError: they are not those of all inputs.
    """
    if len(inputs) == 1:
        return {inputs[0].name: np.asarray(integers)}
    names = ", ".join(node.name for node in inputs)
    if not isinstance(integers, Mapping) or set(integers) != {node.name for node in inputs}:
        raise ProbqError(f"the integers of {len(inputs)} inputs are a dictionary with the keys {names}")
    return {name: np.asarray(one) for name, one in integers.items()}


def parts_of_batch(x: Mapping[str, np.ndarray], largest: int) -> list[dict[str, np.ndarray]]:
    """Return the parts of a batch, at least one.

    Args:
        x: by the names of input nodes.
        largest: number of elements of the largest value for one example, of which a part has about `CHUNK` in all.

    Raises:
        ProbqError: the inputs are batches of different lengths.
    """
    lengths = {name: len(one) if one.ndim else 0 for name, one in x.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ProbqError(f"the inputs are batches of different lengths ({said}); give one length")
    if any(not one.ndim for one in x.values()):
        return [dict(x)]  # which is refused with its shape
    size, length = max(1, CHUNK // max(1, largest)), next(iter(lengths.values()))
    return [{name: one[k : k + size] for name, one in x.items()} for k in range(0, max(1, length), size)]
