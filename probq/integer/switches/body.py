"""A switch's body is its branches one behind the other, each of which ends with the node that `outputs` names.

    y = outputs[choice](values)

The first input of a switch is the choice, one integer for each example; the others are the values that its branches
read, by their own names. A branch reads these and the nodes before it in the same branch.
"""

from __future__ import annotations

from typing import Any

from probq.utils.errors import ProbqError

SWITCH = "switch"


def branches(switch: Any) -> list[tuple[Any, ...]]:
    """Return the nodes of each branch, whose last one has its value."""
    names = [node.name for node in switch.body]
    ends = [names.index(name) + 1 for name in switch.attributes["outputs"]]
    return [switch.body[first:last] for first, last in zip([0, *ends], ends, strict=False)]


def check_branches(switch: Any) -> None:
    """Refuse a switch whose body is not that of its branches.

    Raises:
        ProbqError: there are fewer than two branches or no values; names repeat; the outputs do not end the branches
            one after the other; a node takes what is none before it in its branch; or an input, a loop, or a switch is
            within.
    """
    names, outputs = [node.name for node in switch.body], switch.attributes["outputs"]
    if len(outputs) < 2 or len(switch.inputs) < 2:
        raise ProbqError("a switch takes a choice and values, and has two branches or more")
    if len(set(names)) < len(names):
        twice = next(name for k, name in enumerate(names) if name in names[:k])
        raise ProbqError(f"two nodes of the body are named {twice!r:.80}; names must be unique")
    places = [names.index(name) if name in names else -1 for name in outputs]
    if places[0] < 0 or places != sorted(set(places)) or places[-1] != len(names) - 1:
        raise ProbqError("the outputs of a switch are the last nodes of its branches, in their order")
    for branch in branches(switch):
        known = set(switch.inputs[1:])
        for node in branch:
            if node.body or node.op in ("input", "item", "state"):
                raise ProbqError(f"the body of a switch holds no {node.op}, as {node.name!r:.80} is")
            for name in node.inputs:
                if name not in known:
                    raise ProbqError(
                        f"node {node.name!r:.80} takes {name!r:.80}, which is no value of the switch, and none before "
                        "it in its branch"
                    )
            known.add(node.name)
