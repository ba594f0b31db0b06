"""A loop's body begins with an item of each sequence and with states, and ends with an output and the next states.

    for t in time: (output_t, state_{t+1}) = body(sequence_t, state_t)

The k-th node "item" is the time step of the loop's k-th input, whose first axis is time; the k-th node "state" becomes
what the k-th name of `next` says. A state begins with an input of the loop if `given` has its place, in the order of
the inputs behind the sequences, else with its tensor `first`, else with zeros. The loop's value has the outputs of all
steps along its first axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from probq.integer.switches.body import SWITCH, check_branches
from probq.utils.errors import ProbqError

LOOP, ITEM, STATE = "loop", "item", "state"
BEGINS = (ITEM, STATE)
BODIES = (LOOP, SWITCH)  # operations that have one

T = TypeVar("T")


def every_node(nodes: Iterable[Any]) -> Iterator[Any]:
    """Yield nodes, and after each loop or switch those of its body."""
    for node in nodes:
        yield node
        yield from node.body


def items(loop: Any) -> list[Any]:
    """Return the nodes of a loop's body that are time steps of its inputs, in the order of these."""
    return [node for node in loop.body if node.op == ITEM]


def states(loop: Any) -> list[Any]:
    """Return the nodes of a loop's body that are its states."""
    return [node for node in loop.body if node.op == STATE]


def given(loop: Any) -> list[int]:
    """Return the places of the states that begin with inputs of the loop, in the order of these."""
    return list(loop.attributes.get("given", ()))


def sequences(loop: Any, values: Sequence[T]) -> list[T]:
    """Return what stands for the inputs that are sequences."""
    return list(values[: len(values) - len(given(loop))])


def first_states(loop: Any, values: Sequence[T]) -> dict[int, T]:
    """Return what stands for the inputs that states begin with, by the places of these."""
    return dict(zip(given(loop), values[len(sequences(loop, values)) :], strict=True))


def after(loop: Any) -> list[tuple[Any, str]]:
    """Return each state with the name of what it becomes after a step."""
    return list(zip(states(loop), loop.attributes["next"], strict=True))


def results(node: Any) -> tuple[str, ...]:
    """Return the names of what the body of a node ends with; none where it has no body."""
    if node.op == SWITCH:
        return tuple(node.attributes["outputs"])
    return (node.attributes["output"], *node.attributes["next"]) if node.body else ()


def beginning(loop: Any, steps: Sequence[T], own: Mapping[str, T]) -> dict[str, T]:
    """Return what a body begins with, by name.

    Args:
        loop: the node.
        steps: what stands for a time step of each input.
        own: what stands for each state.
    """
    return {node.name: step for node, step in zip(items(loop), steps, strict=True)} | dict(own)


def check_body(loop: Any) -> None:
    """Refuse a node whose body is not that of a loop or a switch.

    Raises:
        ProbqError: there is a body and no loop or switch, or the reverse; names repeat; a node takes what is none
            before it in the body; a body or an input is within; or the loop's items, states, output and next states do
            not fit; or as `check_branches`.
    """
    if loop.op == SWITCH:
        check_branches(loop)
        return
    if loop.op != LOOP:
        if loop.body:
            raise ProbqError(f"{loop.op} takes no body; only loops and switches have one")
        return
    earlier: set[str] = set()
    for node in loop.body:
        if node.op in (*BODIES, "input"):
            raise ProbqError(f"the body of a loop holds no {node.op}, as {node.name!r:.80} is")
        if node.name in earlier:
            raise ProbqError(f"two nodes of the body are named {node.name!r:.80}; names must be unique")
        for name in node.inputs:
            if name not in earlier:
                raise ProbqError(
                    f"node {node.name!r:.80} of the body takes {name!r:.80}, which is none before it there"
                )
        earlier.add(node.name)
    places = given(loop)
    if len(set(places)) < len(places) or not all(place < len(states(loop)) for place in places):
        raise ProbqError(f"given names the states {places} of {len(states(loop))}")
    if len(items(loop)) != len(loop.inputs) - len(places):
        raise ProbqError(
            f"a loop over {len(loop.inputs) - len(places)} sequences has as many items in its body, not "
            f"{len(items(loop))}"
        )
    if len(states(loop)) != len(loop.attributes["next"]):
        raise ProbqError(f"next names {len(loop.attributes['next'])} values for {len(states(loop))} states")
    for name in results(loop):
        if name not in earlier:
            raise ProbqError(f"{name!r:.80} is no node of the body, which ends with it")
    for place, state in enumerate(states(loop)):
        _check_first(state, place in places)


def _check_first(state: Any, is_given: bool) -> None:
    """Refuse a state that begins with what it cannot hold; what is given is proven by ranges."""
    first = state.tensors.get("first")
    if first is not None and (is_given or list(first.shape) != list(state.attributes["shape"])):
        raise ProbqError(f"the state {state.name!r:.80} begins with an input, or with a tensor of its own shape")
    ends = (0, 0) if first is None or not first.size else (int(first.min()), int(first.max()))
    if not is_given and not state.attributes["lo"] <= ends[0] <= ends[1] <= state.attributes["hi"]:
        raise ProbqError(f"the state {state.name!r:.80} begins with {ends[ends[0] == 0]}, which its limits leave out")
