"""Every target takes an integer model, and says so where it is given something else."""

from typing import Any

from probq.integer import IntegerModel
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
