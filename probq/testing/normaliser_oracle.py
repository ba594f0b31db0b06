"""Softmax and normalisation are computed here row by row with Python's integers, which have no end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np


def normalised_rows(kind: str, options: Mapping[str, Any], log2_step: float, x: np.ndarray) -> np.ndarray:
    """Return a softmax or a normalisation without gain and shift, float64, as the integer model defines them.

    Args:
        kind: the function.
        options: its axis, or axes, groups and `eps`.
        log2_step: exponent of the step that the example set.
        x: numbers `[batch, ...]`.
    """
    if kind in ("softmax", "log_softmax"):
        rows = np.moveaxis(x, options["axis"], -1)
        return np.moveaxis(_each(rows, _softmax if kind == "softmax" else _log_softmax), -1, options["axis"])
    axes = options.get("axes", 0)
    lead = x.shape[: x.ndim - axes] if axes else (len(x), options.get("groups", x.shape[1]))
    rows = x.reshape(*lead, -1)
    length = max(rows.shape[-1] - 1, 1).bit_length()
    bits = min(18, 30 - length)
    finest = math.floor(math.log2(options["eps"]) / 2) - 12 if options["eps"] else -1000
    exponent = max(int(log2_step) + 18 - bits, finest)

    def normalise(row: np.ndarray) -> list[float]:
        codes = _codes(row, exponent, bits)
        return _normalised(codes, kind != "rms_norm", options["eps"], exponent, 31 - length - bits)

    return _each(rows, normalise).reshape(x.shape)


def _each(rows: np.ndarray, function: Callable[[np.ndarray], list[float]]) -> np.ndarray:
    return np.array([function(row) for row in rows.reshape(-1, rows.shape[-1])]).reshape(rows.shape)


def _codes(row: np.ndarray, exponent: int, bits: int) -> list[int]:
    steps = np.floor(row / 2.0**exponent + 0.5).clip(-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)
    return [int(code) for code in steps]


def _exponentials(row: np.ndarray) -> tuple[list[int], list[int]]:
    codes = _codes(row, -10, 22)
    below = [max(codes) - code for code in codes]
    pairs = ((2**24 * math.exp(-(d // 32) / 32), 2**24 * math.exp(-(d % 32) / 1024)) for d in below)
    return below, [(math.floor(a + 0.5) * math.floor(b + 0.5) + 2**23) // 2**24 for a, b in pairs]


def _softmax(row: np.ndarray) -> list[float]:
    _, e = _exponentials(row)
    return [math.floor(Fraction(2**15 * each, sum(e)) + Fraction(1, 2)) / 2**15 for each in e]


def _log_softmax(row: np.ndarray) -> list[float]:
    below, e = _exponentials(row)
    highest = sum(e).bit_length() - 1
    middle = (sum(e) * 2**10 // 2**highest) / 2**10 + 2.0**-11
    logs = [math.floor(2**12 * part + 0.5) for part in ((highest - 24) * math.log(2), math.log(middle))]
    return [(-4 * d - sum(logs)) / 2**12 for d in below]


def _normalised(codes: list[int], centred: bool, eps: float, exponent: int, root: int) -> list[float]:
    count, mean = len(codes), sum(codes) if centred else 0
    distances = [count * code - mean for code in codes]
    variance = sum(d * d for d in distances) // count
    added = max(1, math.floor(Fraction(eps) * count**2 * Fraction(4) ** (root - exponent) + Fraction(1, 2)))
    r = math.isqrt(4**root * variance + added)
    limit = math.isqrt(count * 4**12) + 1
    quotients = [math.floor(Fraction(d * 2 ** (12 + root), r) + Fraction(1, 2)) for d in distances]
    return [min(max(quotient, -limit), limit) / 2**12 for quotient in quotients]
