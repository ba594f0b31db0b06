"""Softmax and normalisation with tables of any numbers and any number of binary digits, for random models."""

from collections.abc import Callable
from typing import Any

import numpy as np

OPERATIONS = frozenset({"softmax", "log_softmax", "normalise", "quotient"})


def normaliser(draw: Callable[[int, int], int], random: np.random.Generator) -> tuple[str, dict[str, Any], Any]:
    """Operation, attributes and tensors of a node."""
    bits = draw(0, 14)
    if draw(0, 1):
        spec = {"centred": bool(draw(0, 1)), "eps": draw(1, 3) ** (20 * draw(0, 1)), "bits": bits}
        return "normalise", spec | {"root": draw(0, 8)}, {}
    dropped, reach = draw(0, 8), 2 ** draw(1, 12)
    tables = {name: random.integers(0, reach, draw(1, 40)) for name in ("coarse", "fine")}
    tables["coarse"][0], tables["fine"][0] = 2**4, 2**4
    if draw(0, 1):
        return "softmax", {"dropped": dropped, "bits": bits}, tables
    logs = {name: random.integers(-1000, 1000, size) for name, size in (("octaves", 45), ("logarithms", draw(1, 40)))}
    return "log_softmax", {"dropped": dropped, "factor": draw(1, 100)}, tables | logs
