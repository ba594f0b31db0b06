"""A direction says how far a gate moves in `ConstraintGuided`, from its gradient and the magnitude it quantizes.

Each function gives the size of one move before normalisation, for gradients and magnitudes of any shape. Down, while a
limit is exceeded, those move most that matter least; up, those that matter most:

    down: 1 / s,    up: s,    s = |gradient|, |gradient| + |magnitude| or |gradient| |magnitude|.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

Direction: TypeAlias = Callable[[Tensor, Tensor, bool], Tensor]
LEAST = 1e-12


def gradient(grad: Tensor, magnitude: Tensor, exceeded: bool) -> Tensor:
    """Return `1 / |grad|` where a limit is exceeded, else `-|grad|` (the paper's first direction).

    Args:
        grad: the gradient of the negative ELBO to the gates' log-odds.
        magnitude: mean `|weight|` of what shares the gate, or mean `|input|` of the batch; broadcasts to `grad`.
        exceeded: whether a limit is exceeded.

    Returns:
        What is taken from the log-odds: positive closes a gate.
    """
    return _signed(grad.abs(), exceeded)


def gradient_plus_magnitude(grad: Tensor, magnitude: Tensor, exceeded: bool) -> Tensor:
    """Return `1 / (|grad| + |magnitude|)` where a limit is exceeded, else `-(|grad| + |magnitude|)` (the second).

    Arguments and result as in `gradient`.
    """
    return _signed(grad.abs() + magnitude.abs(), exceeded)


def gradient_times_magnitude(grad: Tensor, magnitude: Tensor, exceeded: bool) -> Tensor:
    """Return `1 / (|grad| |magnitude|)` where a limit is exceeded, else `-|grad| |magnitude|` (the third).

    Arguments and result as in `gradient`.
    """
    return _signed(grad.abs() * magnitude.abs(), exceeded)


def _signed(size: Tensor, exceeded: bool) -> Tensor:
    return 1 / size.clamp_min(LEAST) if exceeded else -size
