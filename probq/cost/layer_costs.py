"""These plain functions say what one layer costs at two widths, as a user's own cost does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from probq.network.tracing.layer import Layer

Cost: TypeAlias = Callable[[Layer, Any, Any], Any]
FLOAT_BITS = 32


def bops(layer: Layer, weight_bits: Any, input_bits: Any) -> Any:
    """Return the bit operations `MACs * weight bits * input bits` of a layer for one example.

    Args:
        layer: the layer.
        weight_bits: width in bits, a number or an array; of a product of two tensors, that of the second one.
        input_bits: width in bits, a number or an array that broadcasts.

    Returns:
        BOPs, of the widths' shape. Biases, pooling, normalisation and softmax are not counted. Codes of vectors are
        looked up, and the numbers of their table multiplied, so of these the width of the table's entries counts.

    Source: M. van Baalen, C. Louizos, M. Nagel, R. A. Amjad, Y. Wang, T. Blankevoort, M. Welling, 2020, "Bayesian
    Bits: Unifying Quantization and Pruning".
    """
    return layer.macs * layer.multiplied_bits(weight_bits) * input_bits


def storage(layer: Layer, weight_bits: Any, input_bits: Any) -> Any:
    """Return the bits that store the layer's weight, `weights * weight bits`, and its table; a tied weight counts once.

    Only codes of vectors have a table that counts, of `K d` entries.
    """
    return layer.weights * weight_bits + layer.table_bits(weight_bits) + 0 * input_bits


def activations(layer: Layer, weight_bits: Any, input_bits: Any) -> Any:
    """Return the bits of the layer's input tensor for one example, `inputs * input bits`, of a product those of both.

    A tensor that two layers read counts twice. Inputs that no quantizer reaches count 32 bits for each number.
    """
    return layer.inputs * input_bits + layer.others * weight_bits


def ebops(layer: Layer, weight_bits: Any, input_bits: Any) -> Any:
    """Return an upper bound of the effective bit operations of a layer, `MACs * weight digits * input bits`.

    The digits of a weight are the binary digits of its magnitude: none at 0 bits, 1 at 1 bit, one less than the width
    from 2 bits on, because the sign is none. The figure is what all weights of that width could cost: one whose outer
    digits are zero costs less, for a constant counts only the digits from its first to its last one. What the decided
    codes really cost is `probq.effective_bops(q, assignment)`. Of a product of two tensors both widths count, as in
    `bops`; of codes of vectors the digits of their table's entries.

    Source: C. Sun, T. K. Aarrestad, V. Loncar, J. Ngadiuba, M. Spiropulu, 2024, "Gradient-based Automatic Mixed
    Precision Quantization for Neural Networks On-Chip" (EBOPs).
    """
    if layer.is_product:
        return bops(layer, weight_bits, input_bits)
    bits = np.asarray(layer.multiplied_bits(weight_bits))
    digits = np.where(bits > 1, bits - 1, bits)
    return layer.macs * (digits if digits.ndim else int(digits)) * input_bits


def name(cost: Cost) -> str:
    """Return the name of a cost."""
    return str(getattr(cost, "__name__", cost))
