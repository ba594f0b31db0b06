"""A program that an artefact holds gives back integers."""

from os import PathLike
from typing import Any

import numpy as np

from probq.utils.errors import ProbqError

LIMIT = 2.0**63


def integers(found: Any, path: str | PathLike[str]) -> np.ndarray:
    """Return the numbers as int64, none of them rounded.

    Raises:
        ProbqError: they are no integers, or beyond 64 bits.
    """
    found = np.asarray(found)
    if found.dtype.kind in "iu":
        return found.astype(np.int64)
    whole = found.dtype.kind == "f" and bool((np.isfinite(found) & (np.abs(found) < LIMIT)).all())
    if not whole or (found != np.floor(found)).any():
        raise ProbqError(f"{path} gives numbers that are no integers; write the model again")
    return found.astype(np.int64)


def shaped(found: np.ndarray, shape: tuple[int, ...], path: str | PathLike[str]) -> np.ndarray:
    """Return the numbers in the shape that the artefact says they have.

    Raises:
        ProbqError: there are more or fewer of them.
    """
    try:
        return found.reshape(shape)
    except ValueError as error:
        raise ProbqError(f"{path} gives {found.size} numbers, and says that they have the shape {shape}") from error
