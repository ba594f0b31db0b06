"""A layer is one multiply-accumulate (MAC) operation of a network, with the geometry a cost may depend on."""

from __future__ import annotations

from dataclasses import dataclass


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

    @property
    def is_product(self) -> bool:
        """Return whether both tensors that are multiplied are computed, so that there is no weight."""
        return self.others > 0

    @property
    def channels(self) -> int:
        """Return the number of output channels that a weight can have widths of their own for."""
        return self.shape[self.channel_axis]
