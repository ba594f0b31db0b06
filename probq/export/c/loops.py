"""A loop becomes a `for` in C around the steps of its body, with memory for one time step and for the states."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from probq.export.c.code.elementwise import cast, copied, operand
from probq.export.c.code.program import CSource
from probq.export.c.code.text import index, loops, nest
from probq.export.c.code.values import Buffer, View
from probq.integer import Node
from probq.integer.loops.body import first_states, items, sequences, states


class Begun(NamedTuple):
    """This is a loop whose body is to follow.

    Attributes:
        first: number of the first step that is repeated.
        y: the outputs of all time steps.
        over: the sequences.
        states: memory of the states.
    """

    first: int
    y: View
    over: list[View]
    states: list[View]


def begin_loop(p: CSource, node: Node) -> Begun:
    """Add what stands in front of a loop's body: the states, and what each time step reads."""
    inputs = [p.views[name] for name in node.inputs]
    over, begun = sequences(node, inputs), first_states(node, inputs)
    y = p.view(p.ranges[node.name].type, p.ranges[node.name].low.shape)
    parts = [p.view(x.buffer.type, x.shape[1:]) for x in over]
    own = [p.view(p.ranges[state.name].type, p.ranges[state.name].low.shape) for state in states(node)]
    p.views |= {item.name: view for item, view in zip(items(node), parts, strict=True)}
    p.views |= {state.name: view for state, view in zip(states(node), own, strict=True)}
    # what is read or written at every time step lives from before the first to behind the last one
    lines = ["(void)y;"]
    for k, (view, state) in enumerate(zip(own, states(node), strict=True)):
        lines += _moved(view, f"s{k}", begun[k], f"b{k}", 0) if k in begun else _first(p, view, state, f"s{k}")
    p.step(
        f"{node.name}: states", {f"b{k}": x.buffer for k, x in begun.items()}, {"y": y.buffer} | _named("s", own), lines
    )
    first = len(p.steps)
    lines = [line for k, (x, part) in enumerate(zip(over, parts, strict=True)) for line in
             _moved(part, f"y{k}", x, f"x{k}", x.strides[0])]  # fmt: skip
    p.step(f"{node.name}: a time step", _named("x", over), _named("y", parts), lines, timed=True)
    return Begun(first, y, over, own)


def end_loop(p: CSource, node: Node, begun: Begun) -> View:
    """Add what each time step leaves behind its body, and return the outputs of all."""
    y, own = begun.y, begun.states
    output, ends = p.views[node.attributes["output"]], [p.views[name] for name in node.attributes["next"]]
    kept = {view.buffer.key for view in own}
    ends = [_apart(p, node.name, view) if view.buffer.key in kept else view for view in ends]
    output = _apart(p, node.name, output) if output.buffer.key in kept else output
    lines = _moved(View(y.buffer, y.shape[1:], y.strides[1:]), "y", output, "x", 0, y.strides[0])
    lines += [line for k, (end, view) in enumerate(zip(ends, own, strict=True)) for line in
              _moved(view, f"s{k}", end, f"n{k}", 0)]  # fmt: skip
    read = {"x": output.buffer} | _named("n", ends) | _named("q", begun.over)
    p.step(f"{node.name}: what it leaves", read, {"y": y.buffer} | _named("s", own), lines, timed=True)
    p.loops.append((begun.first, len(p.steps) - 1, y.shape[0], bool(node.attributes["reverse"])))
    return y


def _first(p: CSource, view: View, state: Node, target: str) -> list[str]:
    """Return C lines that set a state to its first value, which is 0 unless it has another."""
    first = state.tensors.get("first", np.zeros(view.shape, np.int64))
    place = operand(p, first.reshape(-1), 1).at("i")
    return loops([("i", view.size)], [f"{target}[i] = {cast(view.buffer.type, place)};"])


def _named(letter: str, views: Iterable[View]) -> dict[str, Buffer]:
    return {f"{letter}{k}": view.buffer for k, view in enumerate(views)}


def _apart(p: CSource, title: str, x: View) -> View:
    """Return a copy of a state as it was before the step, which is written over."""
    return copied(p, f"{title}: as before", x, p.view(x.buffer.type, x.shape))


def _moved(y: View, target: str, x: View, source: str, read: int, written: int = 0) -> list[str]:
    """Return C lines that copy one value into another, at distances that grow with the time step `t`."""
    # of a sequence, the axis of time is the first one of its view
    strides = x.strides[1:] if len(x.strides) > len(y.strides) else x.strides
    axes = nest(y.shape, [y.strides, strides])
    names = [f"i{k}" for k in range(len(axes))]
    to, of = (
        index([*names, "t"], [*(steps[k] for _, steps in axes), ahead], view.offset)
        for k, (view, ahead) in enumerate(((y, written), (x, read)))
    )
    same = x.buffer.type if x.buffer.type == y.buffer.type else None
    body = [f"{target}[{to}] = {cast(y.buffer.type, f'{source}[{of}]', same)};"]
    return loops(zip(names, [n for n, _ in axes], strict=True), body)
