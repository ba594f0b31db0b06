"""This module says what a loop computes, what its values may reach, and which shapes they have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from probq.integer.loops.body import BEGINS, after, beginning, states
from probq.utils.errors import ProbqError

Shape = tuple[int, ...]


def run_loop(loop: Any, sequences: tuple[np.ndarray, ...], evaluate: Callable[..., np.ndarray]) -> np.ndarray:
    """Return the outputs of all time steps, int64 `[batch, time, ...]`.

    Args:
        loop: the node.
        sequences: its inputs, `[batch, time, ...]`.
        evaluate: gives the value of a node from its inputs.

    Raises:
        ProbqError: as `evaluate`.
    """
    batch, count = sequences[0].shape[:2]
    own = {node.name: np.zeros((batch, *node.attributes["shape"]), np.int64) for node in states(loop)}
    outputs = []
    order = range(count)
    for t in reversed(order) if loop.attributes["reverse"] else order:
        values = beginning(loop, [x[:, t] for x in sequences], own)
        for node in loop.body:
            given = [values[node.name]] if node.op in BEGINS else [values[name] for name in node.inputs]
            values[node.name] = evaluate(node, *given)
        outputs.append(values[loop.attributes["output"]])
        own = {node.name: values[name] for node, name in after(loop)}
    return np.stack(outputs[::-1] if loop.attributes["reverse"] else outputs, 1)


def begin_shapes(loop: Any, sequences: list[Shape]) -> dict[str, Shape]:
    """Return the shapes of what a body begins with.

    Raises:
        ProbqError: the inputs have no time steps, or not as many as each other.
    """
    lengths = {shape[:1] for shape in sequences}
    if len(lengths) != 1 or not next(iter(lengths)) or not sequences[0][0]:
        raise ProbqError(
            f"node {loop.name} (loop): values of shapes {sequences} are no sequences of one length above 0"
        )
    own = {node.name: tuple(node.attributes["shape"]) for node in states(loop)}
    return beginning(loop, [shape[1:] for shape in sequences], own)


def check_states(loop: Any, shapes: dict[str, Shape], within: Callable[[str, int, int], bool]) -> None:
    """Refuse a loop whose states have another shape after a step, or may leave their limits.

    Args:
        loop: the node.
        shapes: of the body's values.
        within: whether a value of the body lies within limits.

    Raises:
        ProbqError: naming the state.
    """
    for node, name in after(loop):
        if shapes[name] != shapes[node.name]:
            raise ProbqError(
                f"node {loop.name} (loop): the state {node.name} of shape {shapes[node.name]} becomes {name} of shape "
                f"{shapes[name]}"
            )
        if not within(name, node.attributes["lo"], node.attributes["hi"]):
            raise ProbqError(
                f"node {loop.name} (loop): the state {node.name} becomes {name}, which may leave its limits"
            )
