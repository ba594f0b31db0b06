"""A switch becomes an `if` in C around the steps of each branch, of which one is computed for each example."""

from collections.abc import Callable, Sequence

from probq.export.c.code.elementwise import copied
from probq.export.c.code.program import CSource
from probq.export.c.code.values import View
from probq.integer import Node
from probq.integer.switches.body import branches


def switch(p: CSource, node: Node, add: Callable[[Sequence[Node]], None]) -> View:
    """Compute the value of the branch that is chosen.

    Args:
        p: the program.
        node: the switch.
        add: adds the steps of a branch.
    """
    choice = p.views[node.inputs[0]]
    y = p.view(p.ranges[node.name].type, p.ranges[node.name].low.shape)
    for number, branch in enumerate(branches(node)):
        first = len(p.steps)
        add(branch)
        copied(p, f"{node.name}: of branch {number}", p.views[branch[-1].name], y)
        p.choices.append((first, len(p.steps) - 1, choice, number))
    # the choice is read before each branch, so that its memory is its own until the last one
    p.step(f"{node.name}: chosen", {"c": choice.buffer}, {"y": y.buffer}, ["(void)y;"])
    return y
