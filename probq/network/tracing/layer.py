"""A layer is one multiply-accumulate (MAC) operation of a network, with the geometry a cost may depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class WeightTable:
    """A weight's table is what its codes of one width choose from, where they are codes of vectors.

    Attributes:
        width: of the weight in bits, without the table.
        entry_bits: width of the numbers in the table, which are those that are multiplied.
        bits: that the table takes.
    """

    width: float
    entry_bits: int
    bits: int


@dataclass(frozen=True)
class Layer:
    """A layer is one multiply-accumulate operation of a network with its weight and input; counts are for one example.

    Attributes:
        name: the name of the module, as in `named_modules()`.
        weight: name of the weight tensor, as in `named_parameters()`; tied layers name the same one.
        input: name of the input's quantizer, or None where no quantizer can reach it.
        macs: multiply-accumulates, all calls together.
        weights: numbers in the weight tensor; 0 where an earlier layer owns it (tied weights are stored once).
        inputs, outputs: numbers in the input and output tensors, all calls together.
        shape: the shape of the weight.
        channel_axis: axis of the weight that runs over output channels.
        transposed: whether it is a transposed convolution.
        first: whether the input is the network's own input, reached by no trained parameter.
        smallest: least value of the input on the example.
        norm: name of the batch normalisation that alone follows, or None.
        reads: name of the weight whose output channels are all that the layer reads, each equally often; None where
            that is not known.
        plain: whether its module's forward is that of `torch.nn`; others may compute more than one product.
        others: of a product of two tensors, numbers in the second one, all calls together. `weight` is then the name of
            that one's quantizer, and `shape` is that of its last call. 0 for a layer with a weight.
        memory: whether the input is the memory of a recurrent cell, whose width is `Plan.state`.
        tables: of the weight, for each width at which its codes are those of vectors.
    """

    name: str
    weight: str
    input: str | None
    macs: int
    weights: int
    inputs: int
    outputs: int
    shape: tuple[int, ...]
    channel_axis: int = 0
    transposed: bool = False
    first: bool = False
    smallest: float = 0.0
    norm: str | None = None
    reads: str | None = None
    plain: bool = True
    others: int = 0
    memory: bool = False
    tables: tuple[WeightTable, ...] = ()

    @property
    def is_product(self) -> bool:
        """Return whether both tensors that are multiplied are computed, so that there is no weight."""
        return self.others > 0

    @property
    def channels(self) -> int:
        """Return the number of output channels that a weight can have widths of their own for."""
        return self.shape[self.channel_axis]

    def multiplied_bits(self, weight_bits: Any) -> Any:
        """Return the width of what is multiplied at a width of the weight, or at an array of them: entries of tables.

        Example:
            >>> table = WeightTable(width=1.5, entry_bits=8, bits=2048)
            >>> Layer("fc", "fc.weight", "fc.input", 64, 64, 8, 8, (8, 8), tables=(table,)).multiplied_bits(1.5)
            8
        """
        result = weight_bits
        for table in self.tables:
            result = _where(weight_bits, table.width, table.entry_bits, result)
        return result

    def table_bits(self, weight_bits: Any) -> Any:
        """Return the bits of the table that belongs to a width of the weight, or to an array of them, 0 for most.

        It counts where the weight itself does.
        """
        result: Any = 0
        for table in self.tables if self.weights else ():
            result = _where(weight_bits, table.width, table.bits, result)
        return result


def _where(bits: Any, width: float, value: int, other: Any) -> Any:
    if isinstance(bits, np.ndarray):
        return np.where(bits == width, value, other)
    return value if bits == width else other
