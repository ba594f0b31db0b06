"""A word of warning where networks are drawn whose widths are not those that the posterior was tuned at."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from probq.assignment import Assignment
from probq.decide import tuned_widths
from probq.program import Program


def untuned(q: Program, assignments: Sequence[Assignment]) -> int:
    """How many draws have other widths than those the network was tuned at; none if a fit tuned none."""
    tuned = tuned_widths(q) or {}
    return sum(any(not np.array_equal(a.widths[name], tuned[name]) for name in tuned) for a in assignments)


def caution(count: int, draws: int, what: str, instead: str) -> str:
    """A sentence about draws at widths that were not tuned, empty if there are none.

    Args:
        count: of such draws, from `untuned`.
        draws: all of them.
        what: what the draws are called.
        instead: the call that draws codes alone.
    """
    if not count:
        return ""
    return (
        f"{count} of {draws} {what} have other widths than the network was tuned at, and may predict much worse; draw "
        f"codes at the tuned widths, {instead}, or fit each draw at its own, probq.fit(q.at(a), ...), and check it on "
        "held-out data"
    )


def warn_untuned(count: int, draws: int, what: str, instead: str) -> None:
    """Warn, at the caller's caller's line, with `caution` where it says something."""
    if sentence := caution(count, draws, what, instead):
        warnings.warn(sentence, UserWarning, stacklevel=3)
