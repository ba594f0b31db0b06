"""An integer of a lowered network fits 31 bits, and a sum that is rounded next 40."""

from __future__ import annotations

from probq.integer.lowering.operations.values import Value
from probq.utils.errors import ProbqError

MOST = 2**31 - 1
SUMS = frozenset({"sum", "sum_pool"})
MOST_SUM = 2**40 - 1  # of numbers that float64 still tells apart behind a division, see `error_of_sums`


def check_bound(value: Value, then_rounded: bool) -> None:
    """Raise unless a value's integers fit 31 bits, or 40 where they are sums that are rounded next.

    A mean of many numbers is such a sum; the rounding brings it back to few bits.

    Args:
        value: the value.
        then_rounded: whether what is made of it rounds, or only sums further.

    Raises:
        ProbqError: naming operation and module.
    """
    most = MOST_SUM if then_rounded and _source(value).op in SUMS else MOST
    if value.bound > most:
        raise ProbqError(
            f"{value.where} cannot be lowered: its integers may reach {value.bound:,}, beyond "
            f"{most.bit_length()} bits; use narrower widths"
        )


def leads_to_rounding(value: Value) -> bool:
    """Return whether a value rounds what it is made of, or only sums it."""
    return value.op == "requantize" or value.op in SUMS or is_only_rescaled(value)


def is_only_rescaled(value: Value) -> bool:
    """Return whether a value has the integers of its parent, worth more or less."""
    return value.op == "scaled" and bool((value.tensors["multiplier"] == 1).all())


def _source(value: Value) -> Value:
    """Return the value that first had a value's integers."""
    while is_only_rescaled(value):
        value = value.parents[0]
    return value
