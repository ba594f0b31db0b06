"""The nodes alone tell how much memory and work one example takes; both are limited in proportion to the model.

A file of a thousand bytes can ask for a kernel of a billion elements; what a trained network asks for is far less for
each bit of its parameters and each element of its input. Everything is counted in Python integers before anything is
allocated.
"""

import math
from collections.abc import Collection, Mapping, Sequence

from probq.integer.loops.body import results
from probq.integer.node import Node
from probq.integer.shapes import Shape, padded, spread
from probq.integer.switches.body import SWITCH, branches
from probq.utils.errors import ProbqError

MOST_NODES = 2**12
MOST_INPUTS = 2**26  # for one example


def check_count(count: int) -> None:
    """Refuse a model of more nodes, bodies of loops and switches included, than exporters and compilers take.

    Raises:
        ProbqError: saying how many there are.
    """
    if count > MOST_NODES:
        raise ProbqError(f"a model has at most {MOST_NODES:,} nodes, not {count:,}; split it")


def check_sizes(nodes: Sequence[Node], shapes: Mapping[str, Shape], outputs: Collection[str] = ()) -> None:
    """Refuse a model whose memory or work for one example is out of proportion to its parameters and its input.

    Args:
        nodes: those of the model.
        shapes: of their values, by name.
        outputs: names of the nodes whose values are held to the end.

    Raises:
        ProbqError: naming the node that takes most.
    """
    bits = sum(node.bits for node in nodes)
    inputs = sum(math.prod(shapes[node.name]) for node in nodes if node.op == "input")
    scratch = {node.name: _scratch(node, shapes) for node in nodes}
    work = {node.name: _work(node, shapes) for node in nodes}
    held = {name: count + math.prod(shapes[name]) for name, count in scratch.items()}
    for what, found, sizes, most in (
        ("numbers as input", inputs, dict.fromkeys(held, inputs), MOST_INPUTS),
        (
            "elements at once",
            _peak(nodes, shapes, scratch, outputs),
            held,
            2**26 + 2**4 * bits + 2**7 * min(inputs, 2**21),
        ),
        ("operations", sum(work.values()), work, 2**32 + 2**2 * bits * inputs),
    ):
        if found > most:
            name = max(sizes, key=lambda name: sizes[name])
            raise ProbqError(
                f"one example takes {_short(found)} {what}, {_short(sizes[name])} of them in node {name!r:.80}; with "
                f"{bits:,} bits of parameters and {_short(inputs)} inputs it may take {_short(most)}"
            )


def _peak(
    nodes: Sequence[Node], shapes: Mapping[str, Shape], scratch: Mapping[str, int], outputs: Collection[str]
) -> int:
    """Return how many elements are held at once at most, where a value goes after its last use."""
    own = {node.name for node in nodes}  # the branches of a switch read what is held outside of it
    last = {name: k for k, node in enumerate(nodes) for name in (*node.inputs, node.name) if name in own}
    last |= dict.fromkeys(outputs, len(nodes))
    ending: dict[int, int] = {}
    for name, k in last.items():
        ending[k] = ending.get(k, 0) + math.prod(shapes[name])
    now = peak = 0
    for k, node in enumerate(nodes):
        now += math.prod(shapes[node.name])
        peak = max(peak, now + scratch[node.name])
        now -= ending.get(k, 0)
    return peak


def _scratch(node: Node, shapes: Mapping[str, Shape]) -> int:
    """Return the number of elements that are made on the way to a node's value."""
    x = shapes[node.inputs[0]] if node.inputs else ()
    if node.body:
        return _peak(node.body, shapes, {inner.name: _scratch(inner, shapes) for inner in node.body}, results(node))
    if node.op == "conv":
        return math.prod(spread(node, x))
    if node.op in ("max_pool", "sum_pool"):
        return math.prod(padded(x, node.attributes["padding"])) + math.prod(_reach(node, shapes[node.name]))
    return 0


def _reach(node: Node, shape: Shape) -> Shape:
    """Return what the windows of a pool see, to the end of the last one."""
    spec = node.attributes
    kept = len(shape) - len(spec["kernel"])
    dilation = spec.get("dilation") or [1] * len(spec["kernel"])
    ends = zip(shape[kept:], spec["kernel"], spec["stride"], dilation, strict=True)
    return (*shape[:kept], *((n - 1) * s + d * (k - 1) + 1 for n, k, s, d in ends))


def _work(node: Node, shapes: Mapping[str, Shape]) -> int:
    """Return how many products a layer, comparisons or additions a pool, or elements anything else takes."""
    count = math.prod(shapes[node.name])
    if node.op == SWITCH:
        return max(sum(_work(inner, shapes) for inner in branch) for branch in branches(node))
    if node.body:
        return shapes[node.name][0] * sum(_work(inner, shapes) for inner in node.body)
    if node.op == "linear":
        return count * node.tensors["weight"].shape[1]
    if node.op == "conv":
        weight = node.tensors["weight"].shape
        inputs = weight[0] // node.attributes["groups"] if node.attributes["transposed"] else weight[1]
        return count * inputs * math.prod(weight[2:])
    if node.op == "matmul":
        return count * shapes[node.inputs[0]][-1]
    if node.op in ("max_pool", "sum_pool"):
        return count * math.prod(node.attributes["kernel"])
    return max(count, *(math.prod(shapes[name]) for name in node.inputs), 1)


def _short(count: int) -> str:
    return f"{count:,}" if count < 10**15 else f"10^{len(str(count)) - 1}"
