"""This module says what a switch computes, what its choice may be, and which shape it has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from probq.integer.switches.body import branches
from probq.utils.errors import ProbqError

Shape = tuple[int, ...]


def run_switch(switch: Any, inputs: tuple[np.ndarray, ...], evaluate: Callable[..., np.ndarray]) -> np.ndarray:
    """Return for each example the value of the branch that is chosen for it, int64 `[batch, ...]`.

    Each branch is computed for its own examples alone.

    Args:
        switch: the node.
        inputs: the choices, and the values that branches read.
        evaluate: gives the value of a node from its inputs.

    Raises:
        ProbqError: as `evaluate`; or a choice is no branch.
    """
    choice, several = inputs[0].reshape(len(inputs[0])), branches(switch)
    if choice.size and not 0 <= choice.min() <= choice.max() < len(several):
        raise ProbqError(f"choices {choice.min()} .. {choice.max()} of {len(several)} branches")
    found = None
    for number, branch in enumerate(several):
        rows = np.flatnonzero(choice == number)
        if not len(rows) and not (number == len(several) - 1 and found is None):  # of no example, one gives the shape
            continue
        values = {name: value[rows] for name, value in zip(switch.inputs[1:], inputs[1:], strict=True)}
        for node in branch:
            values[node.name] = evaluate(node, *(values[name] for name in node.inputs))
        own = values[branch[-1].name]
        found = np.empty((len(choice), *own.shape[1:]), np.int64) if found is None else found
        found[rows] = own
    assert found is not None
    return found


def branch_shape(switch: Any, shapes: Mapping[str, Shape]) -> Shape:
    """Return the shape of a switch, that of all of its branches.

    Raises:
        ProbqError: they have different ones, or the choice is not one number for each example.
    """
    found = [shapes[name] for name in switch.attributes["outputs"]]
    if len(set(found)) > 1:
        raise ProbqError(f"node {switch.name} (switch): its branches have different shapes, {found}")
    if math.prod(shapes[switch.inputs[0]]) != 1:
        raise ProbqError(
            f"node {switch.name} (switch): the choice is one number for each example, not a value of shape "
            f"{shapes[switch.inputs[0]]}"
        )
    return found[0]


def check_choice(switch: Any, choice: Any) -> None:
    """Refuse a switch whose choice may be none of its branches.

    Args:
        switch: the node.
        choice: the range of its choice.

    Raises:
        ProbqError: naming the node.
    """
    count = len(switch.attributes["outputs"])
    if not choice.within(0, count - 1):
        raise ProbqError(
            f"node {switch.name} (switch): the choice may be {choice.low} .. {choice.high}, of {count} branches"
        )
