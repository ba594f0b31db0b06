"""The C program of an integer model has every node in order, a layer and the requantization after it at once."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from probq.export.c import arithmetic, data_movement, normalisers
from probq.export.c.code.elementwise import copied
from probq.export.c.code.program import CSource
from probq.export.c.code.values import I8, I16, I32, LAYERS, U8, Type, View, dense, narrowest, ranges
from probq.export.c.layers import follows, layer
from probq.integer import IntegerModel, Node

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
        "matmul": arithmetic.matmul,
        "concat": data_movement.concat,
        "table": data_movement.table,
        "repeat": data_movement.repeat,
        "pad": data_movement.pad,
        "slice": data_movement.piece,
        "softmax": normalisers.softmax,
        "log_softmax": normalisers.log_softmax,
        "normalise": normalisers.normalise,
    }
)


def generated(model: IntegerModel, name: str) -> CSource:
    """Return the steps, constants and helpers that compute a model's output from `input` into `output`.

    Raises:
        ProbqError: a value could leave 31 bits and is no sum that is rounded next, or has no elements.
    """
    p = CSource(name, ranges(model))
    followers = _followers(model)
    done: set[str] = set()
    for node in model.nodes:
        if node.name in done:
            continue
        if node.op == "input":
            p.views[node.name] = _input(p, node)
        elif node.op in LAYERS:
            follower = followers.get(node.name)
            last = follower or node
            p.views[last.name] = layer(p, node, follower)
            done.add(last.name)
        else:
            p.views[node.name] = EMITTERS[node.op](p, node)
    result = p.views[model.output]
    out = p.buffer(I32, result.size, "output")
    copied(p, "output", result, View(out, result.shape, dense(result.shape)))
    return p


def input_type(p: CSource, node: Node) -> Type:
    """Return the type of one element of a model's input."""
    return narrowest(*p.ranges[node.name].limits, (U8, I8, I16, I32))


def _input(p: CSource, node: Node) -> View:
    shape = p.ranges[node.name].low.shape
    view = p.view(input_type(p, node), shape)
    return View(p.buffer(view.buffer.type, view.size, "input"), shape, dense(shape))


def _followers(model: IntegerModel) -> dict[str, Node]:
    """Return the requantization that alone takes a layer's value, by the layer's name."""
    takers: dict[str, list[Node]] = {}
    for node in model.nodes:
        for name in node.inputs:
            takers.setdefault(name, []).append(node)
    found = {}
    for node in model.nodes:
        after = takers.get(node.name, [])
        alone = node.op in LAYERS and node.name != model.output and [each.op for each in after] == ["requantize"]
        if alone and follows(node, after[0]):
            found[node.name] = after[0]
    return found
