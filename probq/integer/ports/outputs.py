"""A model gives one array, or a structure of arrays, each in units of a scale of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probq.integer.ports.matching import matched
from probq.utils.errors import ProbqError
from probq.utils.structures.walk import Structure, leaves, map_leaves, named_leaves, parts

OUTPUT, NAME = "the output", "output"


@dataclass(frozen=True)
class Output:
    """An output is a node whose value a model gives.

    Attributes:
        name: "output", and behind it the way to it in a structure, such as "output.boxes".
        node: the name of its node.
        scale: real value of one unit.
    """

    name: str
    node: str
    scale: float


def checked_scales(output: Structure, scales: Structure) -> Structure:
    """Return the scales of outputs as floats.

    Args:
        output: a name, or a structure of names and constants.
        scales: positive numbers, built like the output; None where it has a constant.

    Raises:
        ProbqError: there is no output, or a scale is no positive finite number.
    """
    if not any(isinstance(name, str) for name in leaves(output)):
        raise ProbqError(f"a model has at least one output, and {output!r:.80} names none")
    for leaf in leaves(output):
        if not (leaf is None or type(leaf) in (str, bool, int, float)):
            raise ProbqError(f"the output {leaf!r:.80} is no name, number or None")
    if not _alike(output, scales):
        raise ProbqError(
            f"output_scale is built like the output {output!r:.80}, with a scale for each, and has none for one"
        )
    return map_leaves(_checked_scale, output, scales)


def _alike(one: Structure, other: Structure) -> bool:
    mine, others = parts(one), parts(other)
    if mine is None or others is None:
        return mine is None and others is None
    # a named tuple that is read again is of another class of the same name
    same = type(one).__name__ == type(other).__name__ and [name for name, _ in mine] == [name for name, _ in others]
    return same and all(_alike(a, b) for (_, a), (_, b) in zip(mine, others, strict=True))


def _checked_scale(name: Any, scale: Any) -> float | None:
    if not isinstance(name, str):
        return None
    if type(scale) not in (int, float) or not 0 < scale < 2**1024:
        raise ProbqError(f"output_scale must be a positive finite float, not {scale!r:.80}")
    return float(scale)


def outputs_of(output: Structure, scales: Structure) -> tuple[Output, ...]:
    """Return the outputs in order, constants left out."""
    named = zip(named_leaves(output, NAME), leaves(scales), strict=True)
    return tuple(Output(name, node, scale) for (name, node), scale in named if isinstance(node, str))


def by_name(output: Structure, values: Any) -> dict[str, np.ndarray]:
    """Return what a model gave as arrays by the names of its outputs.

    Args:
        output: a name, or a structure of names and constants.
        values: built alike.

    Raises:
        ProbqError: they are not.
    """
    found = matched(output, values, OUTPUT)
    return {name: np.asarray(found[node]) for name, node in named_leaves(output, NAME) if isinstance(node, str)}


def put_together(output: Structure, values: Mapping[str, Any]) -> Any:
    """Return a structure of what each node gave."""
    return map_leaves(lambda leaf: values[leaf] if isinstance(leaf, str) else leaf, output)


def returned(output: Structure, values: Any, axes: Mapping[str, int]) -> Any:
    """Return what `put_together` gives with the batch moved from the first axis to its own, by the outputs' names."""
    if not axes:
        return values
    names = iter([name for name, leaf in named_leaves(output, NAME) if isinstance(leaf, str)])
    return map_leaves(
        lambda leaf, value: np.moveaxis(value, 0, axes.get(next(names), 0)) if isinstance(leaf, str) else value,
        output, values,
    )  # fmt: skip


def as_computed(values: Sequence[np.ndarray]) -> Any:
    """Return what an artefact computed: an array, or a tuple of arrays in the order of the model's outputs."""
    return values[0] if len(values) == 1 else tuple(values)
