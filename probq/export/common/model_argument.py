"""Every target takes an integer model, and says so where it is given something else."""

from typing import Any

from probq.integer import IntegerModel
from probq.integer.packing import VectorPacking
from probq.utils.errors import ProbqError


def require_model(model: Any, function: str) -> None:
    """Raise unless a model is an integer model.

    Args:
        model: what the user gave.
        function: the name of the function that was called.

    Raises:
        ProbqError: it is something else; the message says how to come by one.
    """
    if not isinstance(model, IntegerModel):
        raise ProbqError(
            f"{function} takes an integer model, from probq.lower(q) or probq.IntegerModel.load(path), not "
            f"{type(model).__name__}"
        )


def require_one_of_each(model: IntegerModel, target: str) -> None:
    """Raise unless a model has one input and one output, and is called with the one as it is.

    Args:
        model: the model.
        target: what cannot hold more, for the message.

    Raises:
        ProbqError: it has more; the message names the targets that hold them.
    """
    if len(model.inputs) > 1 or len(model.outputs) > 1:
        raise ProbqError(
            f"{target} has one input and one output, and this model has {len(model.inputs)} and {len(model.outputs)}; "
            "write it as ONNX or as a C header, or lower a network that takes and returns one tensor"
        )


def require_no_vectors(model: IntegerModel, target: str) -> None:
    """Raise where codes of a weight are those of vectors.

    Args:
        model: the model.
        target: what has no tables of vectors, for the message.

    Raises:
        ProbqError: naming the weight, and the targets that have them.
    """
    for node in model.every_node:
        if isinstance(node.packing.get("weight"), VectorPacking):
            raise ProbqError(
                f"{target} has no tables of vectors, which the weight of {node.name} is looked up in; write it as ONNX "
                "or as a C header, or give that layer a ladder of widths"
            )


def input_names(model: IntegerModel) -> dict[str, str]:
    """Return what artefacts call a model's inputs, by the names of their nodes: `input` where there is one."""
    names = [node.name for node in model.inputs]
    return {names[0]: "input"} if len(names) == 1 else {name: name for name in names}
