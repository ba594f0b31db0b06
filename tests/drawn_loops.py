"""Loops with any body, and choices by masks, for random models."""

from typing import Any

import numpy as np

from probq.integer import Node

PROVEN = frozenset({"loop", "where", "argmax"})  # whose ranges are those that probq proves


def chosen(make: Any, x: str) -> str:
    """The place of the largest number along an axis, or one of two values by a mask of another shape."""
    shape = make.shape(x)
    if make.draw(0, 2) == 0 and len(shape) > 1:
        return str(make.node("argmax", [x], {"axis": make.draw(-len(shape), len(shape) - 1)}))
    fits = [name for name in make.low if make.shape(name) in (shape, shape[1:], shape[-1:])]
    mask, other = make.choose(*fits), make.choose(*fits)
    return str(make.node("where", [mask, x, other] if make.draw(0, 1) else [mask, other, x]))


def loop(make: Any, x: str) -> str:
    """A loop over the first axis: states that are given, constant or zeros, and a body of a few operations."""
    steps, *rest = make.shape(x)
    if not rest or steps > 6:
        return str(make.requantize(x))
    inner = type(make)(make.draw)
    inner.prefix = f"{make.prefix}body{len(make.nodes)}_"
    item = inner.begin("item", {}, make.low[x].min(0), make.high[x].max(0))
    reach, given, firsts = 2 ** make.draw(1, 9), [], []
    own = []
    for place in range(make.draw(1, 2)):
        first, kind = {}, make.draw(0, 2)
        if kind == 1:
            first = {"first": make.random.integers(-reach, reach, rest)}
        if kind == 2:
            part = make.node("slice", [x], {"axis": 0, "start": 0, "stop": 1, "step": 1})
            part = make.node("reshape", [part], {"shape": rest})
            firsts.append(make.node("clip", [part], {"lo": -reach, "hi": reach - 1}))
            given.append(place)
        ends = np.full(rest, -reach), np.full(rest, reach - 1)
        own.append(inner.begin("state", {"shape": rest, "lo": -reach, "hi": reach - 1}, *ends, **first))
    y = inner.node("add", [item, own[0]])
    for _ in range(make.draw(0, 3)):
        y = inner.grow(y)
    ends = [name for name in inner.low if inner.shape(name) == tuple(rest)]
    after = [inner.node("clip", [make.choose(*ends)], {"lo": -reach, "hi": reach - 1}) for _ in own]
    spec: dict[str, Any] = {"reverse": bool(make.draw(0, 1)), "output": y, "next": after}
    spec |= {"given": given} if given else {}
    return str(make.node("loop", [x, *firsts], spec, body=tuple(inner.nodes)))


def begun(make: Any, op: str, attributes: dict[str, Any], low: Any, high: Any, tensors: dict[str, Any]) -> str:
    """The name of a node that a body begins with."""
    node = Node(f"{make.prefix}{op}{len(make.nodes)}", op, (), attributes, tensors)
    make.nodes.append(node)
    make.low[node.name], make.high[node.name] = low, high
    return node.name
