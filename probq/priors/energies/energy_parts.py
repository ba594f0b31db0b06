"""The parts of an energy are checked here: names, widths, a number for each rung and for each pair of rungs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from probq.utils.arguments import is_real
from probq.utils.errors import ProbqError
from probq.utils.numbers import exact_number

Widths = tuple[tuple[float, ...], ...]


def texts(what: str, given: Any) -> tuple[str, ...]:
    """Return several texts as a tuple.

    Raises:
        ProbqError: if they are none; one text by itself is none either.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ProbqError(f"{what} of an energy are a sequence of texts, not {given!r:.80}")
    found = tuple(given)
    if not all(isinstance(text, str) for text in found):
        raise ProbqError(f"{what} of an energy are texts, not {found!r:.80}")
    return found


def rows(names: Sequence[str], widths: Any, unary: Any) -> tuple[Widths, tuple[np.ndarray, ...]]:
    """Return the widths of each quantizer in bits, and an energy for each, float64.

    Raises:
        ProbqError: if they do not fit one another, widths are not ascending numbers of bits, or energies not finite.
    """
    for what, given in (("widths", widths), ("unary", unary)):
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise ProbqError(f"{what} of an energy are a row for each name, not {given!r:.80}")
    bits, numbers = tuple(widths), tuple(unary)
    if not len(names) == len(bits) == len(numbers) == len(set(names)):
        raise ProbqError("an energy has one row of widths and one of energies for each name, and each name once")
    checked = tuple(_bits(name, row) for name, row in zip(names, bits, strict=True))
    return checked, tuple(_numbers(name, b, row) for name, b, row in zip(names, checked, numbers, strict=True))


def _bits(name: str, given: Any) -> tuple[float, ...]:
    row = tuple(given) if isinstance(given, Iterable) else ()
    if not row or not all(is_real(b) and 0 <= b < np.inf for b in row) or list(row) != sorted(set(row)):
        raise ProbqError(f"{name} needs ascending widths in bits, numbers of 0 or more, not {given!r:.80}")
    return tuple(exact_number(b) for b in row)


def _numbers(name: str, bits: tuple[float, ...], given: Any) -> np.ndarray:
    row = _array(f"energies of {name}", given)
    if row.shape != (len(bits),):
        raise ProbqError(f"{name} needs one energy for each of its widths; it has {bits} and {row}")
    if not np.isfinite(row).all():
        raise ProbqError(f"an energy of {name} is not finite: {row}")
    return row


def _array(what: str, given: Any) -> np.ndarray:
    try:
        return np.array(given, dtype=float)
    except (TypeError, ValueError) as error:
        raise ProbqError(f"{what} are numbers, not {given!r:.80}") from error


def places(widths: Widths) -> list[slice]:
    """Return where the rungs of each quantizer stand among those of all."""
    ends = np.cumsum([0, *map(len, widths)])
    return [slice(int(a), int(b)) for a, b in pairwise(ends)]


def pairs(widths: Widths, given: Any) -> np.ndarray:
    """Return energies of pairs as float64 `[R, R]`.

    Raises:
        ProbqError: if they are not symmetric and finite, or not 0 between rungs of one quantizer.
    """
    found, size = _array("pairwise energies", given), sum(map(len, widths))
    if found.shape != (size, size) or not np.isfinite(found).all():
        raise ProbqError(f"pairwise energies are finite numbers [{size}, {size}], not {found.shape}")
    if not np.array_equal(found, found.T):
        raise ProbqError("pairwise energies are symmetric; give the mean of both halves")
    if any(found[part, part].any() for part in places(widths)):
        raise ProbqError("pairwise energies are 0 between rungs of one quantizer")
    return found
