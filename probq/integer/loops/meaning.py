"""This module says what a loop computes, what its values may reach, and which shapes they have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from probq.integer.loops.body import BEGINS, after, beginning, first_states, sequences, states
from probq.utils.errors import ProbqError

Shape = tuple[int, ...]


def run_loop(loop: Any, inputs: tuple[np.ndarray, ...], evaluate: Callable[..., np.ndarray]) -> np.ndarray:
    """Return the outputs of all time steps, int64 `[batch, time, ...]`.

    Args:
        loop: the node.
        inputs: sequences `[batch, time, ...]`, and what states begin with, `[batch, ...]`.
        evaluate: gives the value of a node from its inputs.

    Raises:
        ProbqError: as `evaluate`.
    """
    over, begun = sequences(loop, inputs), first_states(loop, inputs)
    batch, count = over[0].shape[:2]
    own = {node.name: begun.get(k, _first(node, batch)) for k, node in enumerate(states(loop))}
    outputs = []
    order = range(count)
    for t in reversed(order) if loop.attributes["reverse"] else order:
        values = beginning(loop, [x[:, t] for x in over], own)
        for node in loop.body:
            given = [values[node.name]] if node.op in BEGINS else [values[name] for name in node.inputs]
            values[node.name] = evaluate(node, *given)
        outputs.append(values[loop.attributes["output"]])
        own = {node.name: values[name] for node, name in after(loop)}
    return np.stack(outputs[::-1] if loop.attributes["reverse"] else outputs, 1)


def _first(state: Any, batch: int) -> np.ndarray:
    first = state.tensors.get("first", np.zeros(state.attributes["shape"], np.int64))
    return np.broadcast_to(first, (batch, *first.shape))


def begin_shapes(loop: Any, inputs: list[Shape]) -> dict[str, Shape]:
    """Return the shapes of what a body begins with.

    Raises:
        ProbqError: the sequences have no time steps, or not as many as each other; a state begins with another shape.
    """
    over = sequences(loop, inputs)
    lengths = {shape[:1] for shape in over}
    if len(lengths) != 1 or not next(iter(lengths)) or not over[0][0]:
        raise ProbqError(f"node {loop.name} (loop): values of shapes {over} are no sequences of one length above 0")
    own = {node.name: tuple(node.attributes["shape"]) for node in states(loop)}
    for place, shape in first_states(loop, inputs).items():
        if shape != own[name := states(loop)[place].name]:
            raise ProbqError(f"node {loop.name} (loop): the state {name} of shape {own[name]} begins with {shape}")
    return beginning(loop, [shape[1:] for shape in over], own)


def check_begun(loop: Any, inputs: list[Any]) -> None:
    """Refuse a loop whose states may begin beyond their limits.

    Args:
        loop: the node.
        inputs: ranges of its inputs.

    Raises:
        ProbqError: naming the state.
    """
    for place, reached in first_states(loop, inputs).items():
        state = states(loop)[place]
        if not reached.within(state.attributes["lo"], state.attributes["hi"]):
            raise ProbqError(f"node {loop.name} (loop): the state {state.name} may begin beyond its limits")


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
