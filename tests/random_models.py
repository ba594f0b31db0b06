"""Integer models made at random, of every operation, with widths, strides and signs that are awkward for exporters."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from drawn_loops import PROVEN, begun, chosen, loop
from drawn_normalisers import OPERATIONS as NORMALISERS
from drawn_normalisers import normaliser

from probq.integer import IntegerModel, Node
from probq.integer.interpreter import evaluate
from probq.integer.packing import Packing, bits_of
from probq.integer.ranges import Range
from probq.utils.errors import ProbqError

MOST = 2**31 - 1
Draw = Callable[[int, int], int]


class Maker:
    """Grows a network node by node; `draw(low, high)` decides everything.

    The largest value of every node is tracked by interval arithmetic, so that none passes `most`. A dense network
    has no more than vectors, linear layers, shifts, clips and multiplications.
    """

    most = MOST
    prefix = ""  # of the names of a loop's body

    def __init__(self, draw: Draw, dense: bool = False) -> None:
        self.dense = dense
        self.draw, self.nodes = draw, list[Node]()
        self.low, self.high = dict[str, np.ndarray](), dict[str, np.ndarray]()
        self.random = np.random.default_rng(draw(0, 2**31))
        self.narrow = draw(0, 2) == 2 and not dense  # one and two bits only: bit planes

    def choose(self, *options: Any) -> Any:
        return options[self.draw(0, len(options) - 1)]

    def width(self, *often: int, least: int = 1) -> int:
        """Bits: one of those that occur often, any up to 8, or any beyond."""
        return int(self.choose(*often, self.draw(least, 8), self.draw(9, 16)))

    def shape(self, name: str) -> tuple[int, ...]:
        return self.low[name].shape

    def begin(self, op: str, attributes: dict[str, Any], low: Any, high: Any, **tensors: Any) -> str:
        """The name of a node that a loop's body begins with."""
        return begun(self, op, attributes, low, high, tensors)

    def node(
        self, op: str, inputs: Sequence[str], attributes: dict[str, Any] | None = None, body: Any = (), **tensors: Any
    ) -> str:
        """The name of a new node; `weight` may come with its packing."""
        packing = {}
        if isinstance(tensors.get("weight"), tuple):
            tensors["weight"], packing["weight"] = tensors["weight"]
        arrays = {name: np.asarray(tensor, np.int64) for name, tensor in tensors.items()}
        name = f"{self.prefix}{op}{len(self.nodes)}"
        node = Node(name, op, tuple(inputs), attributes or {}, arrays, packing, body=body)
        low, high, most = self.interval(node)
        if most > self.most:
            raise ProbqError("too large")
        self.nodes.append(node)
        self.low[node.name], self.high[node.name] = low, high
        return node.name

    def interval(self, node: Node) -> tuple[np.ndarray, np.ndarray, int]:
        if node.op == "input":
            top = node.attributes.get("count", 1) - 1 if node.attributes.get("index") else None
            lo, hi = (0, top) if top is not None else (node.attributes["lo"], node.attributes["hi"])
            start, step = node.attributes.get("start", 0), node.attributes.get("step", 1)
            shape = tuple(node.attributes["shape"])
            return np.full(shape, start + step * lo), np.full(shape, start + step * hi), 0
        if node.op == "embedding":
            shape = (*self.shape(node.inputs[0]), node.tensors["weight"].shape[1])
            weight = node.tensors["weight"]
            return np.broadcast_to(weight.min(0), shape), np.broadcast_to(weight.max(0), shape), int(abs(weight).max())
        lows, highs = ([ends[name] for name in node.inputs] for ends in (self.low, self.high))
        most = [np.maximum(abs(low), abs(high))[None] for low, high in zip(lows, highs, strict=True)]
        if node.op == "table":
            shape, table = lows[0].shape, node.tensors["table"]
            return np.full(shape, table.min()), np.full(shape, table.max()), int(abs(table).max())
        if node.op in NORMALISERS | PROVEN:
            found = self.proven(node, lows, highs)
            return np.full(found.shape, found.low), np.full(found.shape, found.high), found.bound
        if node.op in ("linear", "conv"):
            size = evaluate(self.with_tensors(node, abs), *most)[0]
            return -size, size, int(size.max())
        if node.op in ("product", "matmul"):
            whole = [np.full_like(each, each.max()) for each in most] if node.op == "matmul" else most
            size = evaluate(node, *whole)[0]
            return -size, size, int(size.max(initial=0))
        ends = evaluate(node, *(np.stack(pair) for pair in zip(lows, highs, strict=True)))
        sums = evaluate(node, *most) if node.op in ("add", "sum", "sum_pool") else abs(ends)
        return ends.min(0), ends.max(0), int(max(sums.max(initial=0), abs(ends).max(initial=0)))

    def proven(self, node: Node, lows: list[np.ndarray], highs: list[np.ndarray]) -> Range:
        """The range that probq proves, of inputs that reach the ends of all their numbers."""
        ends = dict(zip(node.inputs, zip(lows, highs, strict=True), strict=True))
        sources = [
            Node(
                name, "input", (), {"shape": list(low.shape), "scale": 1.0, "lo": int(low.min()), "hi": int(high.max())}
            )
            for name, (low, high) in ends.items()
        ]
        arguments = tuple(ends) if len(ends) > 1 else None
        return IntegerModel([*sources, node], node.name, 1.0, arguments=arguments).ranges[node.name]

    def with_tensors(self, node: Node, function: Callable[[np.ndarray], np.ndarray]) -> Node:
        return Node(node.name, node.op, node.inputs, node.attributes, {k: function(t) for k, t in node.tensors.items()})

    def weight(self, *shape: int) -> tuple[np.ndarray, Packing]:
        """Codes of one width, of one per row or of one per element; equally spaced, with a step, or any levels."""

        def book() -> range | tuple[int, ...]:
            bits = self.choose(1, 1, 2) if self.narrow else self.width(1, 2, 3, 4, 8, least=0)
            if bits in (1, 2, 3) and self.draw(0, 3) == 0:
                return tuple(sorted({-(2**bits), -1, 0, 1, 2**bits, 5}))
            start = self.choose(-(2**bits) // 2, 0, 1 - 2**bits)
            return range(-1, 2, 2) if bits == 1 and self.draw(0, 1) else range(start, start + 2**bits)

        books = (book(),) * 3 if self.narrow and self.draw(0, 2) else (book(), book(), book())
        rung = self.choose((), (), (shape[0], *[1] * (len(shape) - 1)), shape)
        rung = self.random.integers(0, 3, rung) if rung else np.array(self.draw(0, 2))
        full, weight = np.broadcast_to(rung, shape), np.zeros(shape, np.int64)
        extreme = self.draw(0, 2) == 2
        for k, levels in enumerate(books):
            codes = self.random.integers(0, len(levels), shape)
            codes = codes if not extreme else (codes % 2) * (len(levels) - 1)
            weight = np.where(full == k, np.array(levels)[codes], weight)
        return weight, Packing(books, rung)

    def bias(self, size: int) -> np.ndarray:
        return self.random.integers(-(10 ** self.draw(0, 6)), 10 ** self.draw(0, 6), size)

    def requantize(self, x: str, bits: int | None = None) -> str:
        """To codes of a few bits, with a plain shift or with multipliers for each channel or element."""
        bits = bits or (self.choose(1, 2) if self.narrow else self.width(1, 2, 4, 8))
        shape, bound = self.shape(x), max(1, int(max(abs(self.low[x]).max(), abs(self.high[x]).max())))
        kind = self.choose((), (), (shape[0], *[1] * (len(shape) - 1)), shape)
        shift = max(0, bound.bit_length() - bits - self.draw(0, 3))
        multiplier = np.ones(kind, np.int64)
        if self.draw(0, 1) and not self.dense:
            wide = self.choose(6, 20, 61 - bound.bit_length())
            multiplier = self.random.integers(-(2**wide) // 3, 2**wide, kind)
            shift = min(62, shift + wide)
        signed = self.draw(0, 1)
        attributes = {"lo": -(2 ** (bits - 1)) * signed, "hi": 2 ** (bits - signed) - 1}
        if bits == 1 and self.draw(0, 1):
            attributes = {"lo": 0, "hi": 1, "start": -1, "step": 2}
        add = self.random.integers(-(2**shift), 2**shift + 1, kind) if shift < 61 else np.zeros(kind, np.int64)
        add = np.clip(add, -(2**60), 2**60)
        return self.node("requantize", [x], attributes, multiplier=multiplier, add=add, shift=np.full(kind, shift))

    def linear(self, x: str) -> str:
        out = self.draw(1, 80 if self.narrow else 20)
        return self.node("linear", [x], weight=self.weight(out, self.shape(x)[-1]), bias=self.bias(out))

    def window(self, sizes: Sequence[int]) -> tuple[list[int], list[int], list[int], list[list[int]]]:
        kernel = [self.draw(1, 3) for _ in sizes]
        stride, dilation = ([self.draw(1, most) for _ in sizes] for most in (3, 2))
        room = [max(0, d * (k - 1) + 1 - n) for d, k, n in zip(dilation, kernel, sizes, strict=True)]
        return (
            kernel,
            stride,
            dilation,
            [[r, self.draw(0, 2)] if r else [self.draw(0, 2), self.draw(0, 1)] for r in room],
        )

    def conv(self, x: str) -> str:
        channels, *sizes = self.shape(x)
        kernel, stride, dilation, padding = self.window(sizes)
        groups = self.choose(1, *[g for g in range(1, channels + 1) if channels % g == 0 and not self.narrow])
        out, transposed = (
            groups * self.draw(1, 1 if groups == channels > 1 else 40 if self.narrow else 5),
            self.draw(0, 2) == 2,
        )
        attributes = {
            "stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "transposed": transposed,
        }  # fmt: skip
        shape = (out, channels // groups)
        if transposed:
            attributes["output_padding"] = [self.draw(0, 1) for _ in sizes]
            attributes["padding"] = [
                [self.draw(0, d * (k - 1)) for _ in "ab"] for d, k in zip(dilation, kernel, strict=True)
            ]
            shape = (channels, out // groups)
        return self.node("conv", [x], attributes, weight=self.weight(*shape, *kernel), bias=self.bias(out))

    def pool(self, x: str) -> str:
        _, *sizes = self.shape(x)
        kernel, stride, dilation, padding = self.window(sizes)
        attributes = {"kernel": kernel, "stride": stride, "padding": padding}
        if self.draw(0, 1):
            return self.node("sum_pool", [x], {**attributes, "padding": padding} if dilation == [1] * len(sizes) else
                             {**attributes, "kernel": [1] * len(sizes)})  # fmt: skip
        return self.node("max_pool", [x], attributes | {"dilation": dilation, "ceil_mode": bool(self.draw(0, 1))})

    def rearranged(self, x: str) -> str:
        shape = self.shape(x)
        kind = self.draw(0, 3)
        if kind == 0:
            axes = self.random.permutation(len(shape)).tolist()
            return self.node("permute", [x], {"axes": [a - len(shape) * (a % 2) for a in axes]})
        if kind == 1:
            return self.node("reshape", [x], {"shape": [math.prod(shape[:2]), *shape[2:]]})
        if kind == 2:
            axes = [0] if self.draw(0, 1) else list(range(1, len(shape)))
            return self.node("sum", [x], {"axes": axes or [0], "keepdims": bool(self.draw(0, 1)) or len(shape) == 1})
        return self.node("concat", [x, x], {"axis": self.draw(-len(shape), len(shape) - 1)})

    def arithmetic(self, x: str) -> str:
        kind, shape = self.draw(0, 1 if self.dense else 3), self.shape(x)
        if kind == 0:
            lo, hi = sorted((self.draw(-200, 200), self.draw(-200, 200)))
            return self.node("clip", [x], {"lo": self.choose(lo, None), "hi": self.choose(hi, None)})
        if kind == 1:
            multiplier = self.random.integers(-5, 100, self.choose((), (shape[0], *[1] * (len(shape) - 1)), shape))
            return self.node("multiply", [x], multiplier=multiplier)
        if kind == 3:
            return self.multiplied(x)
        others = [name for name in self.low if self.shape(name) in (shape, shape[1:], shape[-1:])]
        return self.node("add", [x, self.choose(*others)] if self.draw(0, 1) else [self.choose(*others), x])

    def multiplied(self, x: str) -> str:
        """With another value, number by number or as matrices; with itself where nothing else fits."""
        shape = self.shape(x)
        if self.draw(0, 1):
            others = [
                name for name in self.low if self.shape(name) in (shape, shape[1:], shape[-1:], (1,) * len(shape))
            ]
            return self.node("product", [x, self.choose(*others)] if self.draw(0, 1) else [self.choose(*others), x])
        if len(shape) < 2:
            x = self.node("reshape", [x], {"shape": [1, *shape]})
            shape = self.shape(x)
        fits = [n for n in self.low if self.shape(n)[:-1] == (*shape[:-2], shape[-1])]
        x, axes = self.requantize(x), list(range(len(shape)))
        if fits:
            return self.node("matmul", [x, self.requantize(self.choose(*fits))])
        other = self.node("permute", [x], {"axes": [*axes[:-2], axes[-1], axes[-2]]})
        return self.node("matmul", [x, other])

    def table(self, x: str) -> str:
        """A function of anything to anything; of a wide value, its code of a few bits."""
        low, high = int(self.low[x].min()), int(self.high[x].max())
        if high - low > 1000:
            x = self.requantize(x, self.choose(1, 4, 8))
            low, high = int(self.low[x].min()), int(self.high[x].max())
        first, reach = low - self.draw(0, 3), 10 ** self.draw(0, 6)
        table = self.random.integers(self.choose(0, -reach), reach, high + self.draw(1, 3) - first)
        return self.node("table", [x], {"first": first}, table=table)

    def divided(self, x: str) -> str:
        """A softmax or a normalisation of codes of a few bits, or a quotient of them and of those of another value."""
        x = self.requantize(x, self.choose(2, 8, 12))
        if self.draw(0, 2) == 0:
            shape = self.shape(x)
            divisors = [name for name in self.low if self.shape(name) in (shape, (*shape[:-1], 1), (1,) * len(shape))]
            places = [self.draw(0, 12), 0] if self.draw(0, 1) else [0, self.draw(0, 12)]
            low, high = sorted((self.draw(-300, 300), self.draw(-300, 300)))
            attributes = {"up": places[0], "down": places[1], "lo": low, "hi": high}
            return self.node(
                "quotient", [x, self.requantize(self.choose(*divisors), self.choose(2, 8, 12))], attributes
            )
        op, attributes, tensors = normaliser(self.draw, self.random)
        return self.node(op, [x], attributes, **tensors)

    def moved(self, x: str) -> str:
        """Repeated, padded with zeros or cut, along any of the last axes."""
        kind, shape = self.draw(0, 2), self.shape(x)
        if kind == 2:
            axis = self.draw(0, len(shape) - 1)
            start = self.draw(0, shape[axis] - 1)
            spec = {"start": start, "stop": self.draw(start + 1, shape[axis]), "step": self.draw(1, 3)}
            return self.node("slice", [x], {"axis": axis - len(shape) * self.draw(0, 1), **spec})
        axes = range(self.draw(1, len(shape)))
        if kind == 1:
            return self.node("pad", [x], {"padding": [[self.draw(0, 2), self.draw(0, 2)] for _ in axes]})
        return self.node("repeat", [x], {"factors": [self.draw(1, 3) for _ in axes]})

    def start(self) -> str:
        if self.draw(0, 5) == 5 and not self.dense:
            count, shape = self.draw(2, 300), [self.draw(2, 6)]
            x = self.node("input", [], {"shape": shape, "index": True, "count": count})
            x = self.node("embedding", [x], weight=self.weight(count, self.draw(1, 9)))
            return self.node("permute", [x], {"axes": [1, 0]}) if self.draw(0, 1) else x
        shape = [self.choose(1, 2, 3, 8, 16, 24), *[self.draw(2, 6) for _ in range(self.choose(0, 1, 2, 2, 2, 3))]]
        if self.dense:
            shape = [self.draw(1, 12)]
        elif len(shape) == 1 or self.narrow:
            shape[0] = self.choose(8, 16, 24, 64, 100, 128) if self.narrow else self.choose(1, 7, 64, 100)
        bits = self.choose(1, 2) if self.narrow else self.width(1, 2, 4, 8)
        signed = self.draw(0, 1)
        limits = {"lo": -(2 ** (bits - 1)) * signed, "hi": 2 ** (bits - signed) - 1}
        if bits == 1 and self.draw(0, 1):
            limits = {"lo": 0, "hi": 1, "start": -1, "step": 2}
        return self.node("input", [], {"shape": shape, "scale": 0.25, **limits})

    def grow(self, x: str) -> str:
        """One operation more that fits; where the integers grow too large, a requantization."""
        spatial = 2 <= len(self.shape(x)) <= 4
        options = [self.linear, self.rearranged, self.arithmetic, self.requantize, self.table, self.moved, self.divided]
        options += [self.conv, self.conv, self.conv, self.pool] * spatial
        options += [partial(chosen, self)] + [partial(loop, self)] * (not self.prefix and len(self.shape(x)) > 1)
        options = [self.linear, self.arithmetic, self.requantize] if self.dense else options
        try:
            found = self.choose(*options)(x)
        except ProbqError:
            return self.requantize(x, 4)
        big = self.low[found].size > 3000 or not self.low[found].size
        if big:
            del self.nodes[-1], self.low[found], self.high[found]
        return x if big else found


def seeded(seed: int, length: int = 8) -> IntegerModel:
    """A model from the numbers of a seed."""
    return random_model(uniform(seed), length)


def uniform(seed: int) -> Draw:
    """Every number as likely, where hypothesis prefers few and small ones and repeats itself."""
    rng = np.random.default_rng(seed)
    return lambda low, high: int(rng.integers(low, high + 1))


def random_model(draw: Draw, length: int = 8, dense: bool = False, maker: type[Maker] = Maker) -> IntegerModel:
    """A model of `length` operations or a few more."""
    make = maker(draw, dense)
    x = make.start()
    for _ in range(length):
        x = make.grow(x)
        if make.nodes[-1].op in ("linear", "conv") and draw(0, 3):
            x = make.requantize(x)
    return IntegerModel(make.nodes, x, 0.5)


def inputs(model: IntegerModel, count: int, seed: int = 0) -> np.ndarray:
    """Integers that a model takes: the least, the greatest, only these two, and any."""
    spec, random = model.input.attributes, np.random.default_rng(seed)
    top = spec["count"] - 1 if spec.get("index") else spec["hi"]
    low = 0 if spec.get("index") else spec["lo"]
    codes = random.integers(low, top + 1, (count, *spec["shape"]))
    ends = np.where(random.integers(0, 2, codes.shape) == 1, top, low)
    codes[::2] = ends[::2]
    codes[0], codes[1 % count] = low, top
    return spec.get("start", 0) + spec.get("step", 1) * codes


def widths(model: IntegerModel) -> set[int]:
    """Widths in bits of the codebooks in use."""
    return {bits_of(book) for node in model.nodes for packing in node.packing.values() for book in packing.codebooks}
