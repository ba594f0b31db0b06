"""The C program of an integer model has every node in order, a layer and the requantization after it at once."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType

from probq.export.c import arithmetic, data_movement, normalisers
from probq.export.c.code.elementwise import copied
from probq.export.c.code.program import CSource
from probq.export.c.code.values import I8, I16, I32, LAYERS, U8, View, dense, narrowest, ranges
from probq.export.c.layers import follows, layer
from probq.export.c.loops import begin_loop, end_loop
from probq.export.c.ports import Port, about, names
from probq.export.c.switches import begin_switch, end_branch, end_switch
from probq.integer import IntegerModel, Node
from probq.integer.loops.body import BEGINS, results
from probq.integer.switches.body import SWITCH, branches

EMITTERS: Mapping[str, Callable[[CSource, Node], View]] = MappingProxyType(
    {
        "embedding": arithmetic.embedding,
        "requantize": arithmetic.requantize,
        "multiply": arithmetic.multiply,
        "clip": arithmetic.clip,
        "max_pool": arithmetic.max_pool,
        "sum_pool": arithmetic.sum_pool,
        "sum": arithmetic.total,
        "reshape": data_movement.reshape,
        "permute": data_movement.permute,
        "add": arithmetic.add,
        "product": arithmetic.product,
        "quotient": arithmetic.quotient,
        "matmul": arithmetic.matmul,
        "concat": data_movement.concat,
        "table": data_movement.table,
        "repeat": data_movement.repeat,
        "pad": data_movement.pad,
        "slice": data_movement.piece,
        "where": data_movement.where,
        "argmax": data_movement.argmax,
        "softmax": normalisers.softmax,
        "log_softmax": normalisers.log_softmax,
        "normalise": normalisers.normalise,
    }
)


def generated(model: IntegerModel, name: str) -> CSource:
    """Return the steps, constants and helpers that compute a model's outputs from its inputs.

    Raises:
        ProbqError: a value could leave 31 bits and is no sum that is rounded next, or has no elements.
    """
    p = CSource(name, ranges(model))
    _add_ports(p, model)
    places = dict(zip((node.name for node in model.inputs), p.ports, strict=False))
    p.views |= {name: _place(p, port) for name, port in places.items()}
    _add(p, model.nodes, {output.node for output in model.outputs})
    for output, port in zip(model.outputs, p.ports[len(places) :], strict=True):
        copied(p, port.name, p.views[output.node], _place(p, port))
    return p


def _add(p: CSource, nodes: Sequence[Node], ends: Collection[str]) -> None:
    """Add the steps of a model's nodes, or of those of a body, and say where their values lie.

    Args:
        p: the program.
        nodes: the nodes; where they begin is known.
        ends: names of those whose values are results.
    """
    followers = _followers(nodes, ends)
    done: set[str] = set()
    for node in nodes:
        if node.name in done or node.op in (*BEGINS, "input"):
            continue
        if node.op == SWITCH:
            p.views[node.name] = begin_switch(p, node)
            for number, branch in enumerate(branches(node)):
                first, result = len(p.steps), branch[-1].name
                _add(p, branch, {result})
                end_branch(p, node, number, result, p.views[node.name], first)
            end_switch(p, node, p.views[node.name])
        elif node.body:
            begun = begin_loop(p, node)
            _add(p, node.body, results(node))
            p.views[node.name] = end_loop(p, node, begun)
        elif node.op in LAYERS:
            follower = followers.get(node.name)
            last = follower or node
            p.views[last.name] = layer(p, node, follower)
            done.add(last.name)
        else:
            p.views[node.name] = EMITTERS[node.op](p, node)


def _add_ports(p: CSource, model: IntegerModel) -> None:
    """Note the parameters of the function: inputs, then outputs."""
    for name, node in zip(names("input", [node.name for node in model.inputs]), model.inputs, strict=True):
        reached = p.ranges[node.name]
        kind = narrowest(*reached.limits, (U8, I8, I16, I32))
        p.ports.append(Port(name, kind, tuple(reached.low.shape), about(node, reached.limits)))
    outputs = model.outputs
    for name, output in zip(names("output", [output.name for output in outputs]), outputs, strict=True):
        unit = f", integers of {exact(output.scale)} each" if len(outputs) > 1 else ""
        p.ports.append(Port(name, I32, tuple(p.ranges[output.node].low.shape), unit))


def exact(scale: float) -> str:
    """Return a scale as a fraction, and as a power of two where it is one."""
    fraction = Fraction(scale)
    text = f"{fraction.numerator} / {fraction.denominator}"
    if fraction.numerator == 1 or fraction.denominator == 1:
        text += f" = 2^{math.frexp(scale)[1] - 1}" if math.frexp(scale)[0] == 0.5 else ""
    return text


def _place(p: CSource, port: Port) -> View:
    return View(p.buffer(port.kind, port.size, port.name), port.shape, dense(port.shape))


def _followers(nodes: Sequence[Node], ends: Collection[str]) -> dict[str, Node]:
    """Return the requantization that alone takes a layer's value, by the layer's name."""
    takers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            takers.setdefault(name, []).append(node)
    found = {}
    for node in nodes:
        after = takers.get(node.name, [])
        alone = node.op in LAYERS and node.name not in ends and [each.op for each in after] == ["requantize"]
        if alone and follows(node, after[0]):
            found[node.name] = after[0]
    return found
