"""Costs and limits in messages are written so that a figure that a user copies does what the message says."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal
from typing import Any


def format_number(value: float, digits: int = 6, up: bool = False) -> str:
    """Return a number as text: whole ones in full, others to some significant digits, all of those before the point.

    Args:
        value: finite.
        digits: number of significant digits, at least.
        up: whether to round up, for what is needed; otherwise to the nearest.

    Example:
        >>> format_number(49224), format_number(0.0578612, 3), format_number(1.06112, 4, up=True)
        ('49,224', '0.0579', '1.062')
    """
    exact = Decimal(float(value))
    place = Decimal(1).scaleb(min(exact.adjusted() - digits + 1, 0))
    rounded = exact.quantize(place, ROUND_CEILING if up else ROUND_HALF_EVEN)
    return f"{rounded.normalize():,f}"


def exact_number(value: Any) -> float:
    """Return a number as an int where it is whole, else as a float; widths of sub-vectors are not whole.

    Example:
        >>> exact_number(4.0), exact_number(1.5)
        (4, 1.5)
    """
    number = float(value)
    return int(number) if number.is_integer() else number
