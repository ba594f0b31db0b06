"""The C exporter moves or chooses elements in these operations, or looks them up."""

from probq.export.c.code.elementwise import broadcast, cast, copied, elementwise, order, ordered
from probq.export.c.code.program import CSource
from probq.export.c.code.text import index, literal, loops, nest
from probq.export.c.code.values import View, dense
from probq.integer import Node
from probq.integer.ranges import reachable


def permute(p: CSource, node: Node) -> View:
    """Return a view with other axes; nothing is moved."""
    x = p.views[node.inputs[0]]
    axes = [axis % len(x.shape) for axis in node.attributes["axes"]]
    return View(x.buffer, tuple(x.shape[k] for k in axes), tuple(x.strides[k] for k in axes), x.offset)


def reshape(p: CSource, node: Node) -> View:
    """Return a view of another shape, of a copy where the elements do not lie in order."""
    x, shape = ordered(p, node.name, p.views[node.inputs[0]]), p.ranges[node.name].low.shape
    return View(x.buffer, shape, dense(shape))


def concat(p: CSource, node: Node) -> View:
    """Put values side by side along one axis."""
    xs, shape = [p.views[name] for name in node.inputs], p.ranges[node.name].low.shape
    axis = node.attributes["axis"] % len(shape)
    y, start = p.view(p.ranges[node.name].type, shape, order(xs[0])), 0
    for x in xs:
        copied(p, node.name, x, View(y.buffer, x.shape, y.strides, start * y.strides[axis]))
        start += x.shape[axis]
    return y


def piece(p: CSource, node: Node) -> View:
    """Return a view of every `step`-th element along one axis; nothing is moved."""
    x, spec = p.views[node.inputs[0]], node.attributes
    axis = spec["axis"] % len(x.shape)
    strides = [s * spec["step"] if k == axis else s for k, s in enumerate(x.strides)]
    start = x.offset + spec["start"] * x.strides[axis]
    return View(x.buffer, p.ranges[node.name].low.shape, tuple(strides), start)


def repeat(p: CSource, node: Node) -> View:
    """Repeat every element along the last axes, by a loop over copies whose source does not move."""
    x, factors = p.views[node.inputs[0]], node.attributes["factors"]
    y = p.view(x.buffer.type, p.ranges[node.name].low.shape, order(x))
    first = len(x.shape) - len(factors)
    shape, strides, steps = list(x.shape[:first]), list(x.strides[:first]), list(y.strides[:first])
    for k, factor in enumerate(factors, first):
        shape += [x.shape[k], factor]
        strides += [x.strides[k], 0]
        steps += [y.strides[k] * factor, y.strides[k]]
    source = View(x.buffer, tuple(shape), tuple(strides), x.offset)
    copied(p, node.name, source, View(y.buffer, tuple(shape), tuple(steps)))
    return y


def pad(p: CSource, node: Node) -> View:
    """Write zeros, then the value in their midst."""
    x, pairs = p.views[node.inputs[0]], node.attributes["padding"]
    y = p.view(p.ranges[node.name].type, p.ranges[node.name].low.shape, order(x))
    p.step(f"{node.name}: zeros", {}, {"y": y.buffer}, loops([("i", y.size)], ["y[i] = 0;"]))
    first = len(x.shape) - len(pairs)
    offset = sum(low * y.strides[k] for k, (low, _) in enumerate(pairs, first))
    copied(p, node.name, x, View(y.buffer, x.shape, y.strides, offset))
    return y


def where(p: CSource, node: Node) -> View:
    """Take one of two values, as a mask says."""
    shape, kind = p.ranges[node.name].low.shape, p.ranges[node.name].type
    xs = [broadcast(p.views[name], shape) for name in node.inputs]
    y = p.view(kind, shape)

    def lines(target: str, s: list[str], _: list[str]) -> list[str]:
        first, second = (cast(kind, each) for each in s[1:])
        return [f"{target} = {s[0]} != 0 ? {first} : {second};"]

    elementwise(p, node.name, y, xs, [], lines)
    return y


def argmax(p: CSource, node: Node) -> View:
    """Find the place of the largest element along one axis, of the first where several are."""
    x = p.views[node.inputs[0]]
    axis, kind = node.attributes["axis"] % len(x.shape), p.ranges[node.name].type
    shape, strides = (tuple(n for k, n in enumerate(each) if k != axis) for each in (x.shape, x.strides))
    y = p.view(kind, shape)
    axes = nest(shape, [y.strides, strides])
    names = [f"i{k}" for k in range(len(axes))]
    place = index(names, [steps[0] for _, steps in axes])
    best, other = (
        index([*names, of], [*(steps[1] for _, steps in axes), x.strides[axis]], x.offset) for of in ("b", "k")
    )
    body = ["int32_t b = 0;"]
    body += loops([("k", x.shape[axis])], [f"b = x[{other}] > x[{best}] ? k : b;"])
    body += [f"y[{place}] = {cast(kind, 'b')};"]
    p.step(node.name, {"x": x.buffer}, {"y": y.buffer}, loops(zip(names, [n for n, _ in axes], strict=True), body))
    return y


def table(p: CSource, node: Node) -> View:
    """Look up `table[x - first]`; entries that nothing reaches are left out."""
    x, (low, high) = p.views[node.inputs[0]], p.ranges[node.inputs[0]].limits
    start, reached = reachable(node, low, high)
    entries, found = p.constant(reached), p.ranges[node.name].type
    y = p.view(found, x.shape, order(x))

    def lines(target: str, sources: list[str], _: list[str]) -> list[str]:
        place = sources[0] if start == 0 else f"{sources[0]} - {literal(start)}"
        return [f"{target} = {cast(found, f'{entries}[{place}]')};"]

    elementwise(p, node.name, y, [x], [], lines)
    return y
