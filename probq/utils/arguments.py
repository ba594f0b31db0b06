"""Many functions check their arguments in the same ways."""

from __future__ import annotations

from numbers import Integral
from typing import Any, TypeGuard

import numpy as np

from probq.utils.errors import ProbqError


def check_number(name: str, value: Any, least: int) -> None:
    """Raise unless a number is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ProbqError(f"{name} must be an integer of {least} or more, not {value!r}")


def is_count(value: Any, least: int) -> bool:
    """Return whether a number is one of Python's own integers of at least `least`, for messages of the caller's own."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_real(value: Any) -> TypeGuard[float]:
    """Return whether a value is a real number of Python or numpy."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def check_seed(seed: Any) -> None:
    """Raise unless a seed is one that every random generator here takes, or None."""
    if seed is not None:
        check_number("seed", seed, 0)
