"""The batch is the first axis of what a model is called with and returns, unless the model says another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probq.integer.ports.inputs import argument_of
from probq.utils.errors import ProbqError


def checked_axes(axes: Any, inputs: Sequence[Any], outputs: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the axes of the batch that are not the first, by the names of arguments and outputs.

    Args:
        axes: the same; None where there are none.
        inputs: nodes.
        outputs: shapes without the batch, by name.

    Raises:
        ProbqError: one is of what there is not, or beyond its axes.
    """
    if not isinstance(axes or {}, Mapping):
        raise ProbqError(f"axes say by name where the batch is, and {axes!r:.80} is no mapping")
    shapes = {argument_of(node): tuple(node.attributes["shape"]) for node in inputs} | dict(outputs)
    for name, axis in (axes or {}).items():
        if name not in shapes:
            raise ProbqError(f"axes name {name!r:.80}, which is no argument that is read, and no output")
        if type(axis) is not int or not 0 < axis <= len(shapes[name]):
            raise ProbqError(f"the batch of {name} is on none of its axes from 1 to {len(shapes[name])}: {axis!r:.40}")
    return dict(axes or {})


def with_batch_first(
    inputs: Sequence[Any], given: Mapping[str, np.ndarray], axes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Return what each input node reads with the batch on the first axis.

    Args:
        inputs: the nodes.
        given: what they read, by their names.
        axes: of the batch, where it is not the first.

    Raises:
        ProbqError: an array has no such axis.
    """
    found = dict(given)
    for node in inputs:
        axis = axes.get(argument_of(node), 0)
        if not axis:
            continue
        shape = list(map(str, node.attributes["shape"]))
        expected = ", ".join([*shape[:axis], "batch", *shape[axis:]])
        x = found[node.name]
        if x.ndim != len(shape) + 1:
            raise ProbqError(f"{node.name}: the input has shape {list(x.shape)}, but the model takes [{expected}]")
        found[node.name] = np.moveaxis(x, axis, 0)
    return found
