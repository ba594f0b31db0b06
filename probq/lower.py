"""Lowering: a decided network becomes an integer model that computes exactly the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probq import cost as costs
from probq import decide
from probq.assignment import Assignment
from probq.codebooks import Grid
from probq.errors import ProbqError
from probq.integer import IntegerModel, Node
from probq.layers import TRANSPOSED, Layer
from probq.lower_ops import OPERATIONS, many
from probq.packing import Packing
from probq.quantized import Quantized
from probq.requantize import Target
from probq.values import MOST, Requantizer, Value, common

BATCH = 3
FINEST = 8


def lower(q: Quantized, assignment: Assignment | None = None) -> IntegerModel:
    """The integer model of a decided network: for every input, its integers times their scale are what
    `q.at(assignment)` computes.

    Args:
        q: a quantized network.
        assignment: widths and codes, by default the mode.

    Raises:
        ProbqError: naming operation and module, if something in the network has no exact integer form, or a layer's
            integers could leave 31 bits.
    """
    assignment = q.mode() if assignment is None else assignment
    fixed = q.at(assignment).eval()
    for name in fixed.weight_names:
        if not np.array_equal(decide.codes(fixed, assignment.widths)[name], assignment.codes[name]):
            raise ProbqError(f"the codes of {name} do not fit the network; decide again after training")
    graph = _Graph(fixed, assignment)
    output = graph.walk()
    nodes, name = _emitted(output, fixed)
    scale = 2.0 ** int(output.exponent) / output.divisor
    return IntegerModel(nodes, name, scale, _metadata(q, assignment))


def _metadata(q: Quantized, assignment: Assignment) -> dict[str, Any]:
    from importlib.metadata import version

    widths = {name: bits if isinstance(bits, int) else _listed(bits) for name, bits in assignment.widths.items()}
    layers = []
    for layer in q.layers:
        own = {n: assignment.widths[n] for n in (layer.weight, layer.input) if n in assignment.widths}
        weight, x = (float(np.mean(own.get(n or "", costs.FLOAT_BITS))) for n in (layer.weight, layer.input))
        bops = costs.total([layer], own)
        layers.append(
            {"name": layer.name, "macs": layer.macs, "weight_bits": weight, "input_bits": x, "bops": bops}
        )
    return {
        "widths": widths,
        "layers": layers,
        "bops": assignment.cost(),
        "percent": assignment.percent(),
        "limit": assignment.limit,
        "convention": "BOP = MACs * weight bits * input bits, of MACs * 32 * 32; biases and pooling not counted",
        "versions": {name: version(name) for name in ("torch", "numpy")},
    }


def _listed(bits: np.ndarray) -> Any:
    return bits.tolist() if bits.size <= 4096 else {"mean": float(bits.mean()), "shape": list(bits.shape)}


class _Graph:
    """Walks the exported network and makes a symbolic integer of every tensor."""

    def __init__(self, q: Quantized, assignment: Assignment) -> None:
        self.q = q
        self.onehots = decide.onehots(q, assignment.widths)
        self.codes = assignment.codes
        self.layers = {layer.name: layer for layer in q.layers}
        self.folded = {layer.norm for layer in q.layers if layer.norm}
        self.requantizer = Requantizer()
        self.values: dict[Any, Any] = {}

    def walk(self) -> Value:
        """The output, in one step."""
        program = self._exported()
        signature = program.graph_signature
        inputs = set(signature.user_inputs)
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in inputs:
                self.values[node] = self._input(node)
            elif node.op == "call_function":
                self.values[node] = self._called(node)
            elif node.op == "output":
                return self._output(node)
        raise ProbqError("the exported network has no output")

    def _exported(self) -> Any:
        args = tuple(torch.zeros(BATCH, *shape, dtype=dtype) for shape, dtype in self.q.signature)
        net = copy.deepcopy(self.q.net).eval()
        try:
            return torch.export.export(net, args)
        except Exception as error:
            raise ProbqError(
                f"torch.export cannot trace the network, so it cannot be lowered: {str(error).splitlines()[0]}"
            ) from error

    def _input(self, node: Any) -> Value:
        value = node.meta["val"]
        shape = tuple(int(n) for n in value.shape[1:])
        return Value("real" if value.is_floating_point() else "index", (), shape, "the network's input")

    def _called(self, node: Any) -> Any:
        name, module = node.target.overloadpacket.__name__, self._module(node)
        where = f"{name} in {module or 'the network'}"
        out = node.meta.get("val")
        if name == "embedding" or name.startswith(("linear", "conv")):
            return self._layer(node, module, where)
        if name in ("batch_norm", "_native_batch_norm_legit_no_training"):
            if module not in self.folded:
                raise ProbqError(f"{where} cannot be lowered to integers: it does not directly follow a layer of its own")
            return self.values[node.args[0]]
        if name == "sym_size":
            return None
        if name not in OPERATIONS or not isinstance(out, Tensor):
            raise ProbqError(
                f"{where} cannot be lowered to integers: probq has no exact integer form of {name}; "
                "replace it, or end the network before it"
            )
        if out.shape[0] != BATCH:
            raise ProbqError(f"{where} cannot be lowered to integers: it changes the batch axis")
        args = [self._argument(a) for a in node.args]
        return OPERATIONS[name](args[0], where, tuple(int(n) for n in out.shape[1:]), *args[1:], **dict(node.kwargs))

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, list | tuple):
            return [self._argument(a) for a in argument]
        if isinstance(argument, torch.fx.Node):
            if argument not in self.values:
                raise ProbqError(f"{argument.name} is a parameter or constant that no layer owns; it cannot be lowered")
            return self.values[argument]
        return argument

    def _module(self, node: Any) -> str:
        stack = node.meta.get("nn_module_stack") or {}
        return str(list(stack.values())[-1][0]).split("@")[0] if stack else ""

    def _output(self, node: Any) -> Value:
        outputs = node.args[0]
        if len(outputs) != 1 or not isinstance(self.values.get(outputs[0]), Value):
            raise ProbqError("only networks with one tensor as output can be lowered; wrap the network to return one")
        value = self.values[outputs[0]]
        if value.op in ("real", "index"):
            raise ProbqError("the network returns its own input; there is nothing to lower")
        return common([value])[0]

    # Layers

    def _layer(self, node: Any, module: str, where: str) -> Value:
        layer = self.layers.get(module)
        if layer is None or layer.weight not in self.q.weights:
            raise ProbqError(f"{where} cannot be lowered to integers: it stays float; give it a plan")
        x = self.values[node.args[1 if layer.input is None else 0]]
        shape = tuple(int(n) for n in node.meta["val"].shape[1:])
        weight, finer, packing = self._weight(layer)
        if layer.input is None:
            return self._embedding(layer, x, shape, where, weight, finer, packing)
        x = self.requantizer(x, self._target(layer), layer.input)
        step = self.q.accumulator_step(layer, self.q.rung(layer.weight, self.onehots[layer.weight]), self.onehots[layer.input])
        exponent = np.round(np.log2(step.double().numpy())).astype(np.int64) - finer
        bias = self._bias(layer, step, weight) * 2**finer
        low, high = _interval(layer, self.q.net.get_submodule(module), weight, bias, x)
        self._check(layer, low, high)
        op, attributes = _geometry(self.q.net.get_submodule(module), layer)
        exponent, low, high = (_spread(a, op, len(shape)) for a in (exponent, low, high))
        return Value(op, (x,), shape, where, exponent, 1, low, high, attributes, {"weight": weight, "bias": bias},
                     {"weight": packing}, quantizer=layer.name)

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
        books, finer = [], 0
        for k in range(len(quantizer.ladder)):
            levels, used = quantizer.levels(k), bool((index == k).any())
            if isinstance(levels, Grid):
                books.append(range(levels.start, levels.stop + 1, levels.step))
            elif used:
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
        channels = weight.shape[1] * self.q.net.get_submodule(layer.name).groups if layer.transposed else weight.shape[0]
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
        self, layer: Layer, x: Value, shape: tuple[int, ...], where: str, weight: np.ndarray, finer: int, packing: Packing
    ) -> Value:
        if x.op != "index":
            raise ProbqError(f"{where} cannot be lowered to integers: its indices are not the network's input")
        rung = self.q.rung(layer.weight, self.onehots[layer.weight])
        step = self.q.weight_step(layer, rung).double().numpy()
        exponent = np.round(np.log2(step)).astype(np.int64) - finer
        source = Value("input", (), x.shape, where, attributes={"shape": list(x.shape), "index": True, "count": len(weight)})
        source = self.values.setdefault(("indices", len(weight)), source)
        low, high = weight.min(0), weight.max(0)
        exponent, low, high = (_spread(a.reshape(-1) if a.size > 1 else a.reshape(()), "linear", len(shape))
                               for a in (exponent, low, high))
        return Value("embedding", (source,), shape, where, exponent, 1, low, high, {}, {"weight": weight},
                     {"weight": packing}, quantizer=layer.name)


def _rescaled(
    values: np.ndarray, books: list[Any], rung: np.ndarray, ratio: np.ndarray
) -> tuple[np.ndarray, int, Packing]:
    """Weights with steps of their own, as multiples of their channel's finest step; each pair of rung and step is a
    codebook."""
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


def _interval(layer: Layer, module: nn.Module, weight: np.ndarray, bias: np.ndarray, x: Value) -> Any:
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
        raise ProbqError(f"layer {layer.name} cannot be lowered: padding_mode {module.padding_mode!r} has no integer form")
    transposed = isinstance(module, TRANSPOSED)
    attributes = {"stride": many(module.stride, axes), "padding": _padding(module, axes),
                  "dilation": many(module.dilation, axes), "groups": int(module.groups), "transposed": transposed}
    return "conv", attributes | ({"output_padding": many(module.output_padding, axes)} if transposed else {})


def _padding(module: Any, axes: int) -> list[list[int]]:
    if module.padding == "valid":
        return [[0, 0]] * axes
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [[n // 2, n - n // 2] for n in total]
    return [[p, p] for p in many(module.padding, axes)]


def _emitted(output: Value, q: Quantized) -> tuple[list[Node], str]:
    """The integer model's nodes, each after those it needs, and the name of the last."""
    nodes: list[Node] = []
    names: dict[int, str] = {}
    taken: dict[str, int] = {}
    stack: list[tuple[Value, bool]] = [(output, False)]
    while stack:
        value, ready = stack.pop()
        if id(value) in names:
            continue
        if not ready:
            stack.append((value, True))
            stack.extend((parent, False) for parent in value.parents)
            continue
        _refused(value)
        base = value.quantizer if value.op in ("linear", "conv", "embedding", "requantize") else value.op
        taken[base] = taken.get(base, 0) + 1
        names[id(value)] = base if taken[base] == 1 else f"{base}@{taken[base]}"
        nodes.append(Node(names[id(value)], value.op, tuple(names[id(p)] for p in value.parents),
                          dict(value.attributes), dict(value.tensors), dict(value.packing), value.bound))
    if taken.get("input", 0) != 1:
        raise ProbqError(
            "the network's input enters layers with different scales or widths, so it cannot be lowered; give those "
            "layers one network_input ladder and one scale, or let one layer read the input"
        )
    return nodes, names[id(output)]


def _refused(value: Value) -> None:
    if value.attributes.get("refused"):
        raise ProbqError(
            f"{value.where} cannot be lowered to integers: its limits are not multiples of the value's step, and it is not "
            "followed by a layer's rounding; use limits such as 0, 1 or 6"
        )
    if value.op == "real":
        raise ProbqError("an operation works on the network's own input before any layer; do it outside of the network")
    if value.bound > MOST:
        raise ProbqError(f"{value.where} cannot be lowered: its integers may reach {value.bound:,}, beyond 31 bits; use narrower widths")
