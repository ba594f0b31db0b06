"""Units are the layers whose rounding is learned together."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

from probq.network.program.program import Program
from probq.network.tracing.layer import Layer
from probq.utils.errors import ProbqError

UNITS = ("layer", "pair", "block")


def units(q: Program, unit: str) -> list[list[Layer]]:
    """Return the layers of each unit, in the order in which the network calls them.

    Args:
        q: a network.
        unit: one of `UNITS`, as in `probq.ptq.reconstruct`.

    Raises:
        ProbqError: if there is no such unit.
    """
    if unit not in UNITS:
        raise ProbqError(f"reconstruct(unit=...) takes one of {', '.join(map(repr, UNITS))}, not {unit!r}")
    uses = Counter(layer.weight for layer in q.layers)
    taken = [m for m in q.layers if m.weight in q.weights and uses[m.weight] == 1 and m.plain and m.input is not None]
    if unit == "layer":
        return [[layer] for layer in taken]
    if unit == "pair":
        return [taken[k : k + 2] for k in range(0, len(taken), 2)]
    blocks = {layer.name: _block(layer, taken) for layer in taken}
    grouped = [list(group) for _, group in groupby(taken, lambda layer: blocks[layer.name])]
    return [part for group in grouped for part in ([group] if blocks[group[0].name] else [[m] for m in group])]


def _block(layer: Layer, layers: list[Layer]) -> str:
    """Return the smallest module within the network that holds several layers and this one, or an empty name."""
    parts = layer.name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        if sum(other.name.startswith(f"{name}.") for other in layers) > 1:
            return name
    return ""
