"""This module warns when networks are drawn whose posterior was never fitted or whose widths were never tuned."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from probq.decisions.assignment import Assignment
from probq.decisions.widths import tuned_widths, widths_are_fixed
from probq.network.program.network import Network
from probq.network.program.program import Program
from probq.network.quantizers.base import OPEN


def is_unfitted(q: Network) -> bool:
    """Return whether nothing was learned or set.

    No fit has seen such a network, and every gate is where `quantize` left it.

    A network at the widths of an assignment is not unfitted: there is nothing left to learn of its widths.
    """
    quantizers = [quantizer for _, quantizer in q.named_quantizers()]
    if q.calibrated or all(quantizer.fixed is not None for quantizer in quantizers):
        return False
    return all(bool((quantizer.logits.detach() == OPEN).all()) for quantizer in quantizers)


def is_one_network(q: Program) -> bool:
    """Return whether all draws are nearly surely the same.

    Widths are fixed, and codes, which could be drawn, are certain since a fit rounded them.
    """
    weights = list(q.weights.values())
    drawable = widths_are_fixed(q) and any(weight.nearest > 1 for weight in weights)
    return drawable and all(weight.is_certain for weight in weights)


def warn_of_draws(*networks: Program) -> None:
    """Warn at the line of the caller's caller if one of the networks is unfitted, or has but one draw."""
    if any(is_unfitted(q) for q in networks):
        warnings.warn(
            "the posterior was never fitted, so its draws are those of the starting point; run probq.fit first",
            UserWarning,
            stacklevel=3,
        )
    if any(is_one_network(q) for q in networks):
        warnings.warn(
            "widths are fixed and the last fit rounded the codes, so that all draws are the same network; "
            "probq.fit(q, ..., rounding=False) fits codes to draw",
            UserWarning,
            stacklevel=3,
        )


def count_untuned(q: Program, assignments: Sequence[Assignment]) -> int:
    """Return how many draws have other widths than the network was tuned at; none if a fit tuned none."""
    tuned = tuned_widths(q) or {}
    return sum(any(not np.array_equal(a.widths[name], tuned[name]) for name in tuned) for a in assignments)


def untuned_caution(count: int, draws: int, what: str, instead: str) -> str:
    """Return a sentence about draws at widths that were not tuned, empty if there are none.

    Args:
        count: the count of such draws, from `count_untuned`.
        draws: all of them.
        what: what the draws are called.
        instead: the call that draws codes alone.
    """
    if not count:
        return ""
    return (
        f"{count} of {draws} {what} have other widths than the network was tuned at, and may predict much worse; draw "
        f"codes at the tuned widths, {instead} after a fit of q.at(q.mode()) with rounding=False, or fit each draw at "
        "its own, probq.fit(q.at(a), ...), and check it on held-out data"
    )


def warn_untuned(count: int, draws: int, what: str, instead: str) -> None:
    """Warn at the line of the caller's caller with `untuned_caution`, if that says something."""
    if sentence := untuned_caution(count, draws, what, instead):
        warnings.warn(sentence, UserWarning, stacklevel=3)
