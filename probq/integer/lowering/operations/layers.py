"""A layer in integers has levels, a bias on the accumulator's grid, and bounds of its accumulators."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probq.codebooks import Grid
from probq.codebooks.rounding.scales import MULTIPLIERS
from probq.codebooks.rounding.vectors import Vectors
from probq.integer.lowering.operations.bounds import MOST
from probq.integer.lowering.operations.elementwise import is_whole, limited
from probq.integer.lowering.operations.pooling import many
from probq.integer.lowering.operations.requantize import RoundingTarget
from probq.integer.lowering.operations.requantizer import Requantizer
from probq.integer.lowering.operations.values import Value, multiplied, refusal
from probq.integer.packing import AnyPacking, Packing, VectorPacking
from probq.network.matrices.matrix import Matrix
from probq.network.program.biases import accumulator_step, rounded_bias, weight_step
from probq.network.program.network import Network
from probq.network.quantizers.base import Rung
from probq.network.tracing.layer import Layer
from probq.network.tracing.module_kinds import TRANSPOSED
from probq.utils.errors import ProbqError

FINEST = 8


class Layers:
    """This class makes the symbolic values of a decided network's layers.

    Args:
        q: the network, its widths fixed.
        onehots: rung of every quantizer.
        codes: code of every weight.
    """

    def __init__(self, q: Network, onehots: Mapping[str, Tensor], codes: Mapping[str, np.ndarray]) -> None:
        self.q, self.onehots, self.codes = q, onehots, codes
        self.requantizer = Requantizer()

    def rounded(self, layer: Layer, x: Value) -> Value:
        """Return the rounded value of a layer's input."""
        return self.requantizer(x, self._target(layer), layer.input or "")

    def product(
        self, layer: Layer, x: Value, shape: tuple[int, ...], where: str, attributes: Mapping[str, Any], biased: bool
    ) -> Value:
        """Return the value of a layer's output.

        Args:
            layer: the layer, quantized.
            x: value of what is multiplied, on the grid of the layer's rounded input.
            shape: the shape of the output without the batch.
            where: operation and module, for messages.
            attributes: the attributes of a convolution's node; none for a linear layer.
            biased: whether the product adds the layer's bias, if it has one, or that of what is folded into it.
        """
        if x.divisor != 1 or x.exponent.ndim or int(x.exponent) != self._target(layer).exponent:
            raise refusal(where, f"what it multiplies is not what layer {layer.name} was called with")
        weight, finer, packing = self._weight(layer)
        module = self.q.net.get_submodule(layer.name)
        if isinstance(module, Matrix) and isinstance(packing, Packing):  # `quantize` refuses vectors of a matrix
            weight = module.arranged_array(weight)
            packing = Packing(
                packing.codebooks, module.arranged_array(packing.rung) if packing.rung.ndim else packing.rung
            )
        rung = self.q.rung(layer.weight, self.onehots[layer.weight])
        step = accumulator_step(self.q.net, layer, rung, self._input_rung(layer))
        factor, exponent = _multiplier(step)
        exponent = exponent - finer
        bias = self._bias(layer, step, weight, biased) * 2**finer
        low, high = _interval(layer, module, weight, bias, x)
        self._check(layer, low, high)
        op = "conv" if attributes else "linear"
        exponent, factor, low, high = (_spread(a, op, len(shape)) for a in (exponent, factor, low, high))
        value = Value(
            op,
            (x,),
            shape,
            where,
            exponent,
            1,
            low,
            high,
            attributes,
            {"weight": weight, "bias": bias},
            {"weight": packing},
            quantizer=layer.name,
            factor=factor,
        )
        return multiplied(value, factor, exponent, 1)

    def _check(self, layer: Layer, low: np.ndarray, high: np.ndarray) -> None:
        bound = max(-int(low.min()), int(high.max()))
        if bound > MOST:
            raise ProbqError(
                f"layer {layer.name} cannot be lowered: its accumulator may reach {bound:,}, the limit is {MOST:,} "
                "(31 bits); use narrower widths for its weight or input"
            )

    def _weight(self, layer: Layer) -> tuple[np.ndarray, int, AnyPacking]:
        """Return the integer levels of a weight, a power of two, and how they are stored.

        The levels exceed the codebook's by that power.
        """
        quantizer = self.q.weights[layer.weight]
        index = self.onehots[layer.weight].argmax(-1)
        if not quantizer.gates and isinstance(found := quantizer.levels(int(index)), Vectors):
            return _looked_up(found, quantizer.ladder.rungs[int(index)], self.codes[layer.weight])
        books: list[range | tuple[int, ...]] = []
        finer = 0
        for k in range(len(quantizer.ladder)):
            levels = quantizer.levels(k)
            if isinstance(levels, Grid):
                books.append(range(levels.start, levels.stop + 1, levels.step))
            elif (index == k).any() and isinstance(levels, Tensor):
                finer = _power(levels.detach().double().numpy(), layer.weight)
                books.append(tuple(int(v) for v in levels.detach().double().numpy() * 2**finer))
            else:
                books.append(range(1))
        rung = np.broadcast_to(index.numpy(), self.codes[layer.weight].shape if index.ndim else ())
        values = np.zeros(self.codes[layer.weight].shape, np.int64)
        for k, book in enumerate(books):
            here = np.broadcast_to(rung == k, values.shape)
            if here.any():
                values[here] = np.asarray(book)[self.codes[layer.weight][here]]
        rungs = self.q.rung(layer.weight, self.onehots[layer.weight])
        ratio = (rungs.scale.detach() / weight_step(layer, rungs)).double().numpy()
        if (ratio != 1).any():
            return _rescaled(values, books, np.broadcast_to(rung, values.shape), ratio)
        return values, finer, Packing(tuple(books), index.numpy() if index.ndim else np.array(int(index)))

    def _bias(self, layer: Layer, step: Tensor, weight: np.ndarray, biased: bool) -> np.ndarray:
        bias = rounded_bias(self.q.net, layer, self.q.folded, step) if biased else None
        channels = (
            weight.shape[1] * self.q.net.get_submodule(layer.name).groups if layer.transposed else weight.shape[0]
        )
        if bias is None:
            return np.zeros(channels, np.int64)
        return np.round((bias.detach().double() / step.double()).numpy()).astype(np.int64)

    def _input_rung(self, layer: Layer) -> Rung:
        return self.q.inputs[layer.input or ""].rung(self.onehots[layer.input or ""].argmax(-1))

    def _target(self, layer: Layer) -> RoundingTarget:
        rung = self._input_rung(layer)
        if not isinstance(rung.levels, Grid):
            raise ProbqError(f"{layer.input} cannot be lowered to integers: inputs need equally spaced codebooks")
        exponent = round(math.log2(float(rung.scale.detach())))
        return RoundingTarget(exponent, rung.levels.start, rung.levels.step, rung.levels.count)

    def values(self, layer: Layer) -> Tensor:
        """Return the real numbers that the weight of a quantized layer holds, float64."""
        weight, finer, _ = self._weight(layer)
        step = weight_step(layer, self.q.rung(layer.weight, self.onehots[layer.weight])).detach().double()
        return torch.from_numpy(weight) * (step * 2.0**-finer)

    def embedding(self, layer: Layer, x: Value, shape: tuple[int, ...], where: str) -> Value:
        """Return the value of the rows that indices choose.

        Args:
            layer: the embedding, quantized.
            x: the indices, which most often are the network's input.
            shape: the shape of the output without the batch.
            where: operation and module, for messages.
        """
        weight, finer, packing = self._weight(layer)
        rung = self.q.rung(layer.weight, self.onehots[layer.weight])
        factor, exponent = _multiplier(weight_step(layer, rung))
        exponent = exponent - finer
        source = _ids(x, len(weight), where)
        low, high = weight.min(0), weight.max(0)
        exponent, factor, low, high = (
            _spread(a.reshape(-1) if a.size > 1 else a.reshape(()), "linear", len(shape))
            for a in (exponent, factor, low, high)
        )
        value = Value(
            "embedding",
            (source,),
            shape,
            where,
            exponent,
            1,
            low,
            high,
            {},
            {"weight": weight},
            {"weight": packing},
            quantizer=layer.name,
            factor=factor,
        )
        return multiplied(value, factor, exponent, 1)


def _ids(x: Value, count: int, where: str) -> Value:
    """Return indices of so many rows; of those that are computed, what is beyond becomes the last row."""
    if x.op == "index":
        ids = {"shape": list(x.shape), "index": True, "count": count}
        return Value("input", (), x.shape, x.where, attributes=ids)
    if x.op == "real" or not is_whole(x):
        raise refusal(where, "its indices are no whole numbers")
    return x if int(x.low.min()) >= 0 and int(x.high.max()) < count else limited(x, where, 0, count - 1)


def _looked_up(vectors: Vectors, book: Any, codes: np.ndarray) -> tuple[np.ndarray, int, AnyPacking]:
    """Return weights that codes look up in a table of vectors, as `Layers._weight` does."""
    table = vectors.table.detach().round().long().cpu().numpy()
    packing = VectorPacking(table, book.entry_bits)
    return packing.values(codes.reshape(-1)).reshape(vectors.shape), 0, packing


def _multiplier(step: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps as `m 2^e` with the least integer `m`, 1 where scales are powers of two."""
    fraction, exponent = np.frexp(step.detach().double().numpy())
    multiplier = np.round(fraction * 2 * MULTIPLIERS).astype(np.int64)
    twos = multiplier & -multiplier
    exponent = exponent.astype(np.int64) - (2 * MULTIPLIERS).bit_length() + 1 + np.round(np.log2(twos)).astype(np.int64)
    return multiplier // twos, exponent


def _rescaled(
    values: np.ndarray, books: list[Any], rung: np.ndarray, ratio: np.ndarray
) -> tuple[np.ndarray, int, AnyPacking]:
    """Return weights with steps of their own as multiples of their channel's finest.

    Each rung and step has a codebook.
    """
    ratio = np.where(np.array([len(book) > 1 for book in books])[rung], ratio, 1.0).astype(np.int64)
    pairs, index = np.unique(np.stack([rung.ravel(), ratio.ravel()]), axis=1, return_inverse=True)
    scaled = tuple(tuple(int(v) * int(r) for v in books[k]) for k, r in pairs.T)
    return values * ratio, 0, Packing(scaled, index.reshape(values.shape))


def _spread(array: np.ndarray, op: str, rank: int) -> np.ndarray:
    """Return `[channels]` in the shape that broadcasts to a layer's output of `rank` axes."""
    if array.ndim == 0:
        return array
    return array.reshape([1] * (rank - 1) + [-1]) if op == "linear" else array.reshape([-1] + [1] * (rank - 1))


def _power(levels: np.ndarray, name: str) -> int:
    """Return the least power of two that makes all levels integers."""
    for power in range(FINEST + 1):
        if (levels * 2**power == np.round(levels * 2**power)).all():
            return power
    raise ProbqError(f"{name} cannot be lowered to integers: its levels are not multiples of 2^-{FINEST}; round them")


def _interval(layer: Layer, module: Any, weight: np.ndarray, bias: np.ndarray, x: Value) -> Any:
    """Return the least and greatest accumulator of every output channel, for all inputs in codebook and padding."""
    least, most = min(int(x.low.min()), 0), max(int(x.high.max()), 0)
    if layer.transposed:
        groups = module.groups
        taps = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).transpose(0, 2, 1, 3)
        rows = taps.reshape(groups * weight.shape[1], -1)
    else:
        rows = weight.reshape(weight.shape[0], -1)
    up, down = np.maximum(rows, 0).sum(1), np.minimum(rows, 0).sum(1)
    return bias + up * least + down * most, bias + up * most + down * least


def geometry(module: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a convolution's node from the arguments of its call; a linear layer has none."""
    if isinstance(module, nn.Linear | Matrix):
        return {}
    axes = len(module.kernel_size)
    if given["groups"] != module.groups:
        raise ProbqError(f"a convolution is called with {given['groups']} groups, and its module has {module.groups}")
    attributes = {
        "stride": many(given["stride"], axes),
        "padding": _padding(given["padding"], many(given["dilation"], axes), module.kernel_size),
        "dilation": many(given["dilation"], axes),
        "groups": int(module.groups),
        "transposed": isinstance(module, TRANSPOSED),
    }
    if attributes["transposed"]:
        attributes["output_padding"] = many(given["output_padding"], axes)
    return attributes


def _padding(padding: Any, dilation: Sequence[int], kernel: Sequence[int]) -> list[list[int]]:
    """Return the numbers in front and behind on each axis, as `torch.nn.functional.conv2d` takes them."""
    if padding == "valid":
        return [[0, 0]] * len(kernel)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [[n // 2, n - n // 2] for n in total]
    return [[p, p] for p in many(padding, len(kernel))]
