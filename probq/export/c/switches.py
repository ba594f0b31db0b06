"""A switch becomes an `if` in C around the steps of each branch, of which one is computed for each example."""

from probq.export.c.code.elementwise import copied
from probq.export.c.code.program import CSource
from probq.export.c.code.values import View
from probq.integer import Node


def begin_switch(p: CSource, node: Node) -> View:
    """Return the memory of what is chosen, which the branches write."""
    return p.view(p.ranges[node.name].type, p.ranges[node.name].low.shape)


def end_branch(p: CSource, node: Node, number: int, result: str, y: View, first: int) -> None:
    """Add what a branch leaves behind its steps, all of which are computed where it is chosen.

    Args:
        p: the program.
        node: the switch.
        number: of the branch.
        result: name of the branch's last node.
        y: what is chosen.
        first: number of the branch's first step.
    """
    copied(p, f"{node.name}: of branch {number}", p.views[result], y)
    p.choices.append((first, len(p.steps) - 1, p.views[node.inputs[0]], number))


def end_switch(p: CSource, node: Node, y: View) -> None:
    """Add what stands behind all branches.

    The choice is read before each branch, so that its memory is its own until the last one.
    """
    p.step(f"{node.name}: chosen", {"c": p.views[node.inputs[0]].buffer}, {"y": y.buffer}, ["(void)y;"])
