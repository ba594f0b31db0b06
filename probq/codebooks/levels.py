"""The user gives the levels of these codebooks, fixed or as the start of training."""

from __future__ import annotations

from collections.abc import Iterable

from probq.codebooks.codebook import Table


def levels(values: Iterable[float]) -> Table:
    """Return a fixed codebook with the given levels, in units of the quantizer's scale.

    Args:
        values: finite levels, strictly ascending.

    Raises:
        ProbqError: if the levels are empty, not finite or not ascending.

    Example:
        >>> levels([-1.5, -0.5, 0.5, 1.5]).bits
        2
    """
    return Table(tuple(float(v) for v in values))


def learned(values: Iterable[float]) -> Table:
    """Return a codebook whose levels start at `values` and are trained, a copy for each quantizer that uses it.

    Levels of the trained network are multiples of 1/16 of the scale, so that they stay integers on hardware.

    Args:
        values: finite levels, strictly ascending.

    Raises:
        ProbqError: if the levels are empty, not finite or not ascending.

    Source: D. Zhang, J. Yang, D. Ye, G. Hua, 2018, "LQ-Nets: Learned Quantization for Highly Accurate and Compact
    Deep Neural Networks" (levels learned with the network).

    Example:
        >>> learned([-2, 0, 2]).learned
        True
    """
    return Table(tuple(float(v) for v in values), learned=True)
