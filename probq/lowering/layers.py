"""A layer in integers: its levels, its bias on the accumulator's grid, and what the accumulator may reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from probq.codebooks import Grid
from probq.errors import ProbqError
from probq.integer.packing import Packing
from probq.lowering.operations import many
from probq.lowering.requantize import Target
from probq.lowering.values import MOST, Requantizer, Value, multiplied
from probq.quantized import Quantized
from probq.scales import MULTIPLIERS
from probq.tracing.layer import Layer
from probq.tracing.module_kinds import TRANSPOSED

FINEST = 8


class Layers:
    """Makes the symbolic values of a decided network's layers.

    Args:
        q: the network, its widths fixed.
        onehots: rung of every quantizer.
        codes: code of every weight.
    """

    def __init__(self, q: Quantized, onehots: Mapping[str, Tensor], codes: Mapping[str, np.ndarray]) -> None:
        self.q, self.onehots, self.codes = q, onehots, codes
        self.requantizer = Requantizer()
        self._indices: dict[int, Value] = {}

    def __call__(self, layer: Layer, x: Value, shape: tuple[int, ...], where: str) -> Value:
        """Value of a layer's output.

        Args:
            layer: the layer, quantized.
            x: value of its input.
            shape: of its output without the batch.
            where: operation and module, for messages.
        """
        weight, finer, packing = self._weight(layer)
        if layer.input is None:
            return self._embedding(layer, x, shape, where, weight, finer, packing)
        x = self.requantizer(x, self._target(layer), layer.input)
        module = self.q.net.get_submodule(layer.name)
        step = self.q.accumulator_step(
            layer, self.q.rung(layer.weight, self.onehots[layer.weight]), self.onehots[layer.input]
        )
        factor, exponent = _multiplier(step)
        exponent = exponent - finer
        bias = self._bias(layer, step, weight) * 2**finer
        low, high = _interval(layer, module, weight, bias, x)
        self._check(layer, low, high)
        op, attributes = _geometry(module, layer)
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

    def _weight(self, layer: Layer) -> tuple[np.ndarray, int, Packing]:
        """Integer levels of a weight, the power of two by which they exceed the codebook's, and how they are stored."""
        quantizer = self.q.weights[layer.weight]
        index = self.onehots[layer.weight].argmax(-1)
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
        ratio = (rungs.scale.detach() / self.q.weight_step(layer, rungs)).double().numpy()
        if (ratio != 1).any():
            return _rescaled(values, books, np.broadcast_to(rung, values.shape), ratio)
        return values, finer, Packing(tuple(books), index.numpy() if index.ndim else np.array(int(index)))

    def _bias(self, layer: Layer, step: Tensor, weight: np.ndarray) -> np.ndarray:
        bias = self.q.rounded_bias(layer, step)
        channels = (
            weight.shape[1] * self.q.net.get_submodule(layer.name).groups if layer.transposed else weight.shape[0]
        )
        if bias is None:
            return np.zeros(channels, np.int64)
        return np.round((bias.detach().double() / step.double()).numpy()).astype(np.int64)

    def _target(self, layer: Layer) -> Target:
        quantizer = self.q.inputs[layer.input or ""]
        rung = quantizer.rung(self.onehots[layer.input or ""].argmax(-1))
        if not isinstance(rung.levels, Grid):
            raise ProbqError(f"{layer.input} cannot be lowered to integers: inputs need equally spaced codebooks")
        exponent = round(math.log2(float(rung.scale.detach())))
        return Target(exponent, rung.levels.start, rung.levels.step, rung.levels.count)

    def _embedding(
        self,
        layer: Layer,
        x: Value,
        shape: tuple[int, ...],
        where: str,
        weight: np.ndarray,
        finer: int,
        packing: Packing,
    ) -> Value:
        if x.op != "index":
            raise ProbqError(f"{where} cannot be lowered to integers: its indices are not the network's input")
        rung = self.q.rung(layer.weight, self.onehots[layer.weight])
        factor, exponent = _multiplier(self.q.weight_step(layer, rung))
        exponent = exponent - finer
        source = Value(
            "input", (), x.shape, where, attributes={"shape": list(x.shape), "index": True, "count": len(weight)}
        )
        source = self._indices.setdefault(len(weight), source)
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


def _multiplier(step: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Steps as `m 2^e` with the least integer `m`: 1 where scales are powers of two."""
    fraction, exponent = np.frexp(step.detach().double().numpy())
    multiplier = np.round(fraction * 2 * MULTIPLIERS).astype(np.int64)
    twos = multiplier & -multiplier
    exponent = exponent.astype(np.int64) - (2 * MULTIPLIERS).bit_length() + 1 + np.round(np.log2(twos)).astype(np.int64)
    return multiplier // twos, exponent


def _rescaled(
    values: np.ndarray, books: list[Any], rung: np.ndarray, ratio: np.ndarray
) -> tuple[np.ndarray, int, Packing]:
    """Weights with steps of their own as multiples of their channel's finest; a codebook for each rung and step."""
    ratio = np.where(np.array([len(book) > 1 for book in books])[rung], ratio, 1.0).astype(np.int64)
    pairs, index = np.unique(np.stack([rung.ravel(), ratio.ravel()]), axis=1, return_inverse=True)
    scaled = tuple(tuple(int(v) * int(r) for v in books[k]) for k, r in pairs.T)
    return values * ratio, 0, Packing(scaled, index.reshape(values.shape))


def _spread(array: np.ndarray, op: str, rank: int) -> np.ndarray:
    """`[channels]` in the shape that broadcasts to a layer's output of `rank` axes."""
    if array.ndim == 0:
        return array
    return array.reshape([1] * (rank - 1) + [-1]) if op == "linear" else array.reshape([-1] + [1] * (rank - 1))


def _power(levels: np.ndarray, name: str) -> int:
    """Least power of two that makes all levels integers."""
    for power in range(FINEST + 1):
        if (levels * 2**power == np.round(levels * 2**power)).all():
            return power
    raise ProbqError(f"{name} cannot be lowered to integers: its levels are not multiples of 2^-{FINEST}; round them")


def _interval(layer: Layer, module: Any, weight: np.ndarray, bias: np.ndarray, x: Value) -> Any:
    """Least and greatest accumulator of every output channel, for all inputs within their codebook and padding."""
    least, most = min(int(x.low.min()), 0), max(int(x.high.max()), 0)
    if layer.transposed:
        groups = module.groups
        taps = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).transpose(0, 2, 1, 3)
        rows = taps.reshape(groups * weight.shape[1], -1)
    else:
        rows = weight.reshape(weight.shape[0], -1)
    up, down = np.maximum(rows, 0).sum(1), np.minimum(rows, 0).sum(1)
    return bias + up * least + down * most, bias + up * most + down * least


def _geometry(module: Any, layer: Layer) -> tuple[str, dict[str, Any]]:
    if isinstance(module, nn.Linear):
        return "linear", {}
    axes = len(module.kernel_size)
    if module.padding_mode != "zeros":
        raise ProbqError(
            f"layer {layer.name} cannot be lowered: padding_mode {module.padding_mode!r} has no integer form"
        )
    transposed = isinstance(module, TRANSPOSED)
    attributes = {
        "stride": many(module.stride, axes),
        "padding": _padding(module, axes),
        "dilation": many(module.dilation, axes),
        "groups": int(module.groups),
        "transposed": transposed,
    }
    return "conv", attributes | ({"output_padding": many(module.output_padding, axes)} if transposed else {})


def _padding(module: Any, axes: int) -> list[list[int]]:
    if module.padding == "valid":
        return [[0, 0]] * axes
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [[n // 2, n - n // 2] for n in total]
    return [[p, p] for p in many(module.padding, axes)]
