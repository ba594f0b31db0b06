"""Ties make the widths of several quantizers one unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from probq.network.quantizers.base import Quantizer
from probq.utils.errors import ProbqError


def tied_sites(
    ties: Mapping[str, Sequence[str]], weights: Mapping[str, Quantizer], inputs: Mapping[str, Quantizer]
) -> dict[str, str]:
    """Return the first quantizer of its name for each tied one but the first; weights come first, then inputs.

    Args:
        ties: the quantizers that carry each name.
        weights: quantizers by name.
        inputs: quantizers by name.

    Raises:
        ProbqError: if tied quantizers have ladders of other widths, or gates of other shapes.
    """
    every, result = {**weights, **inputs}, {}
    for tie, names in ties.items():
        first, *others = sorted(names, key=list(every).index)
        for name in others:
            one, other = every[first], every[name]
            if one.ladder.bits != other.ladder.bits:
                raise ProbqError(
                    f"the tie {tie!r} joins {first} with widths {one.ladder.bits} and {name} with widths "
                    f"{other.ladder.bits}; give both the same widths or different ties"
                )
            if one.gates != other.gates:
                raise ProbqError(
                    f"the tie {tie!r} joins {first} and {name}, whose gates have the shapes {one.gates} and "
                    f'{other.gates}; use Plan(gates="tensor") for both or different ties'
                )
            result[name] = first
    return result
