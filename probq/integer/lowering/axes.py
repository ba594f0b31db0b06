"""Values have the batch as their first axis; where a tensor of the network has it elsewhere, axes are counted anew.

So does attention that is called with the sequence first, and what stands around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from probq.integer.lowering.exported import BATCH, named_arguments, operation
from probq.integer.lowering.operations.data_movement import permute
from probq.integer.lowering.operations.tables import TABULATED
from probq.integer.lowering.operations.values import Value, refusal
from probq.network.explicit.modules import TURN

TURNS = frozenset({"permute", "transpose"})
DROPS = frozenset({"select", "mean", "sum", "amax", "amin", "unbind"})  # axes, unless they are kept
ALONG = DROPS | {"slice", "cat", "chunk", "split", "split_with_sizes"}  # named axes
EACH = frozenset(
    {
        "relu", "relu_", "relu6", "relu6_", "clamp", "clamp_", "clamp_min", "clamp_max", "hardtanh", "hardtanh_", "add",
        "add_", "sub", "rsub", "mul", "mul_", "div", "div_", "neg", "abs", "sign", "maximum", "minimum", "clone",
        "contiguous", "detach", "alias", "to", "dropout", "linear", "embedding", "getitem",
        "fake_quantize_per_tensor_affine",
    }
)  # fmt: skip


def place_of(node: Any, places: Sequence[int], where: str) -> int:
    """Return the axis of the batch in what a node gives.

    Args:
        node: the node.
        places: the axis of the batch in each tensor that it takes.
        where: operation and module, for messages.

    Raises:
        ProbqError: if what it computes has no form with the batch there.
    """
    place, name = places[0] if places else 0, operation(node)
    if any(other != place for other in places):
        raise refusal(where, "the batch is another axis of each of its tensors; transpose one of them first")
    if name in TURNS:
        return _order(node).index(place)
    if name == "stack":
        return place + (_new_axis(node) <= place)
    if name == "unsqueeze":
        return place + (named_arguments(node)["dim"] % (_rank(node) + 1) <= place)
    if place == 0:
        return 0
    if name == "squeeze" and place not in _axes(node):
        return place - sum(axis < place for axis in _axes(node))
    if name in DROPS and not named_arguments(node).get("keepdim", False):
        return place - sum(axis < place for axis in _axes(node))
    last = name == "linear" and place == node.meta["val"].dim() - 1
    if last or not (name in EACH or name in ALONG or name.removesuffix("_") in TABULATED):
        raise refusal(where, "the batch is not its first axis; transpose what it gets, so that the batch is")
    return place


def turned(value: Value, node: Any, where: str, place: int, shape: tuple[int, ...]) -> Value:
    """Return a value whose axes other than the batch are in the order that a node puts them in.

    Args:
        value: the value.
        node: the node, of `TURNS`.
        where: operation and module, for messages.
        place: axis of the batch in the tensor that the node takes.
        shape: of what it gives, without the batch.
    """
    inner = [axis - (axis > place) for axis in _order(node) if axis != place]
    return value if inner == sorted(inner) else permute(value, where, shape, [0, *(axis + 1 for axis in inner)])


def without_batch(tensor: Tensor, place: int, where: str) -> tuple[int, ...]:
    """Return the shape of a tensor without its batch.

    Raises:
        ProbqError: if that is no axis of it.
    """
    if tensor.dim() > place and tensor.shape[place] > BATCH and tensor.shape[place] % BATCH == 0:
        advice = "keep pieces of an example, such as windows, on an axis behind it"
        raise refusal(where, f"it changes the batch axis; {advice}")
    if tensor.dim() <= place or tensor.shape[place] != BATCH:
        raise refusal(where, f"it changes the batch axis. {TURN}")
    return tuple(int(n) for k, n in enumerate(tensor.shape) if k != place)


def counted_anew(node: Any, place: int) -> tuple[list[Any], dict[str, Any]]:
    """Return a node's arguments, with axes as a value has them whose batch is first."""
    args, kwargs = list(node.args), dict(node.kwargs)
    if operation(node) == "stack":
        axis = _new_axis(node)
        return [args[0], axis + (axis <= place)], {}  # as an axis behind the batch
    if not place or operation(node) not in ALONG:
        return args, kwargs
    axes = [axis + 1 if axis < place else axis for axis in _axes(node)]
    own: Any = axes if isinstance(named_arguments(node)["dim"], list | tuple) else axes[0]
    position = list(named_arguments(node)).index("dim")
    if "dim" in kwargs:
        return args, kwargs | {"dim": own}
    return [*args[:position], own, *args[position + 1 :]], kwargs


def with_batch_first(constant: Any, place: int, rank: int, where: str) -> Any:
    """Return a constant as it broadcasts to a value whose batch is first, given one with the batch at a place."""
    if not isinstance(constant, Tensor) or not place or constant.dim() < rank - place:
        return constant
    if constant.dim() < rank:
        raise refusal(where, "its constant lacks the axis of the batch; give it as many axes as the tensor has")
    return constant.movedim(place, 0)


def _rank(node: Any) -> int:
    first = node.args[0]
    return int((first[0] if isinstance(first, list | tuple) else first).meta["val"].dim())


def _new_axis(node: Any) -> int:
    """Return the axis of its own that a `stack` gives its tensors."""
    return int(named_arguments(node)["dim"]) % (_rank(node) + 1)


def _axes(node: Any) -> list[int]:
    """Return the axes that a node names, counted from the first."""
    given = named_arguments(node)["dim"]
    return [axis % _rank(node) for axis in (given if isinstance(given, list | tuple) else [given])]


def _order(node: Any) -> list[int]:
    """Return which axis each axis of what a node of `TURNS` gives was."""
    given, rank = named_arguments(node), _rank(node)
    if operation(node) == "permute":
        return [axis % rank for axis in given["dims"]]
    order = list(range(rank))
    first, second = given["dim0"] % rank, given["dim1"] % rank
    order[first], order[second] = order[second], order[first]
    return order
