"""A selector and several integer models are put together to one model, which computes one of them for each example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from probq.integer import IntegerModel, Node
from probq.integer.ports.inputs import argument_of
from probq.integer.switches.body import SWITCH
from probq.utils.errors import ProbqError

INPUT, SCORES, CHOICE, OUTPUT = "input", "scores", "choice", "output"
MOST = 2**31 - 1


def switched(
    selector: IntegerModel, offsets: np.ndarray, models: Sequence[IntegerModel], metadata: Mapping[str, Any]
) -> IntegerModel:
    """Return the model that computes for each example the branch `argmin_k selector(x)_k + offsets_k`.

    Of several, it is the first.

    Args:
        selector: gives a number for each branch, less for better ones.
        offsets: to add to them, int64 `[branches]`.
        models: the branches; all read one input and give one output of one shape.
        metadata: free information.

    Raises:
        ProbqError: a model has several inputs or outputs, or a recurrence; the outputs have units of which none divides
            the others; or an integer leaves 31 bits.
    """
    inputs: dict[str, Node] = {}
    chosen = _renamed(selector, "selector.", inputs)
    scores, choice = _choice(chosen[-1], selector.ranges[selector.output], offsets)
    unit = min(float(model.output_scale) for model in models)
    bodies = [_branch(model, number, unit, inputs) for number, model in enumerate(models)]
    nodes = [node for body in bodies for node in body]
    values = [node.name for node in inputs.values() if any(node.name in inner.inputs for inner in nodes)]
    outputs = {"outputs": [body[-1].name for body in bodies]}
    switch = Node(OUTPUT, SWITCH, (CHOICE, *values), outputs, body=tuple(nodes))
    made = [*inputs.values(), *chosen, scores, choice, switch]
    return IntegerModel(made, OUTPUT, unit, metadata, INPUT if len(inputs) > 1 else None)


def _choice(last: Node, reached: Any, offsets: np.ndarray) -> tuple[Node, Node]:
    """Return the nodes that choose the branch of the least number."""
    low, high = -reached.high - int(offsets.max()), -reached.low - int(offsets.min())
    if max(-low, high) > MOST:
        raise ProbqError("the selector's numbers leave 31 bits; give it narrower widths")
    tensors = {"multiplier": np.full(len(offsets), -1), "add": -offsets, "shift": np.zeros(len(offsets), np.int64)}
    scores = Node(SCORES, "requantize", (last.name,), {"lo": low, "hi": high}, tensors)
    return scores, Node(CHOICE, "argmax", (SCORES,), {"axis": 0})


def _branch(model: IntegerModel, number: int, unit: float, inputs: dict[str, Node]) -> list[Node]:
    """Return a branch's nodes, the last of which is its output in the common unit."""
    factor = float(model.output_scale) / unit
    if not factor.is_integer():
        raise ProbqError(
            f"branch {number} has outputs of {model.output_scale} each, no multiple of {unit}; give networks of which "
            "one's unit divides the others', as powers of two do"
        )
    nodes = _renamed(model, f"branch{number}.", inputs)
    last = nodes[-1].name if nodes else next(iter(inputs.values())).name
    if factor != 1 or not nodes:
        nodes.append(Node(f"branch{number}", "multiply", (last,), tensors={"multiplier": np.array(int(factor))}))
    return nodes


def _renamed(model: IntegerModel, prefix: str, inputs: dict[str, Node]) -> list[Node]:
    """Return a model's nodes under other names, the output last, and add inputs that none was like."""
    if not isinstance(model.output, str) or len({argument_of(node) for node in model.inputs}) > 1:
        raise ProbqError("a switch is between networks that take one tensor and return one")
    names: dict[str, str] = {}
    found = []
    for node in model.nodes:
        if node.body:
            raise ProbqError(f"{node.name} is a recurrence, which no branch of a switch holds; unroll it")
        if node.op == "input":
            names[node.name] = _input(node, inputs).name
            continue
        names[node.name] = prefix + node.name
        found.append(replace(node, name=prefix + node.name, inputs=tuple(names[name] for name in node.inputs)))
    if found and found[-1].name != names[model.output]:
        raise ProbqError(f"the output {model.output} is not the last operation of its network; lower it again")
    return found


def _input(node: Node, inputs: dict[str, Node]) -> Node:
    """Return the input that rounds as a node does, a new one where there is none."""
    own = {name: value for name, value in node.attributes.items() if name != "argument"}
    key = repr(sorted(own.items()))
    if key not in inputs:
        name = f"{INPUT}@{len(inputs) + 1}" if inputs else INPUT
        inputs[key] = replace(node, name=name, attributes=own | {"argument": INPUT})
    return inputs[key]
