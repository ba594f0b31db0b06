"""The smallest part of a model that still has a property."""

from collections.abc import Callable, Iterator

from probq import IntegerModel
from probq.integer import Node
from probq.integer.ranges import Range


def smallest(model: IntegerModel, wanted: Callable[[IntegerModel], bool]) -> IntegerModel:
    """The part with the fewest nodes that is wanted; the model itself where no part of it is."""
    return next((part for part in sorted(parts(model), key=lambda part: len(part.nodes)) if wanted(part)), model)


def parts(model: IntegerModel) -> Iterator[IntegerModel]:
    """What lies between any two nodes; the first becomes the input, with all that it may reach."""
    found = model.ranges
    for k, first in enumerate(model.nodes):
        source = first if first.op == "input" else _source(first.name, found[first.name])
        nodes, names = [source], {first.name}
        for node in model.nodes[k + 1 :]:
            if node.inputs and names.issuperset(node.inputs):
                nodes.append(node)
                names.add(node.name)
                yield IntegerModel(_needed(nodes), node.name, 1.0)


def _source(name: str, reached: Range) -> Node:
    limits = {"lo": reached.low, "hi": reached.high}
    return Node(name, "input", attributes={"shape": list(reached.shape), "scale": 1.0, **limits})


def _needed(nodes: list[Node]) -> list[Node]:
    """Those that the last one needs, and the input."""
    wanted, kept = {nodes[-1].name}, []
    for node in reversed(nodes):
        if node.name in wanted or node.op == "input":
            kept.append(node)
            wanted.update(node.inputs)
    return kept[::-1]
