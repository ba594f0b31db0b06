"""At each target's limit: the last integer that fits is exact, the next is refused by node, bound and limit."""

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import probq
from probq import IntegerModel, ProbqError
from probq.codebooks import ladder
from probq.integer import Node

TOP = 255  # of the input
BITS_24, BITS_31, BITS_61, BITS_63 = (2**bits - 1 for bits in (24, 31, 61, 63))


def model(*nodes: Node, size: int = 2, hi: int = TOP) -> IntegerModel:
    source = Node("x", "input", attributes={"shape": [size], "scale": 1.0, "lo": 0, "hi": hi})
    return IntegerModel([source, *nodes], nodes[-1].name, 1.0)


def linear(weight: Any, bias: Any) -> Node:
    return Node("fc", "linear", ("x",), {}, {"weight": np.asarray(weight), "bias": np.asarray(bias)})


def requantized(x: str, multiplier: int, add: int, shift: int) -> Node:
    numbers = {"multiplier": np.array(multiplier), "add": np.array(add), "shift": np.array(shift)}
    return Node("q", "requantize", (x,), {"lo": 0, "hi": TOP}, numbers)


def layer(bound: int, *more: Node) -> IntegerModel:
    """Two accumulators, which reach `bound` and `-bound` for the greatest input."""
    weight, rest = divmod(bound, 2 * TOP)
    return model(linear([[weight, weight], [-weight, -weight]], [rest, -rest]), *more)


def followed(bound: int) -> IntegerModel:
    """The layer, and a requantization to 8 bits that rounds half up."""
    shift = bound.bit_length() - 8
    return layer(bound, requantized("fc", 1, 2 ** (shift - 1), shift))


def products(bound: int) -> IntegerModel:
    """A sum of products of 8 bits, and a bias, which together reach `bound`."""
    total, rest = divmod(bound, TOP)
    count, last = divmod(total, 127)
    return model(linear([[*[127] * count, last]], [rest]), size=count + 1)


def scaled(bound: int) -> IntegerModel:
    """A requantization whose `x multiplier + add` reaches `bound`."""
    times = Node("times", "multiply", ("x",), tensors={"multiplier": np.array(2**20)})
    multiplier, add = divmod(bound, 3 * 2**20)
    return model(times, requantized("times", multiplier, add, bound.bit_length() - 8), hi=3)


def factor(bound: int) -> IntegerModel:
    return model(Node("f", "multiply", ("x",), tensors={"multiplier": np.array(bound)}), hi=1)


class Limit(NamedTuple):
    """A target, the bound that it takes and no more, and the refusal of the next: node, bound and limit."""

    module: str
    make: Callable[[int], IntegerModel]
    most: int
    node: str
    bound: int
    limit: int
    needs: str = "numpy"
    program: str = ""
    options: tuple[str, ...] = ()
    slow: bool = False


QONNX = [layer, BITS_24, "fc", BITS_24 + 1, BITS_24, "qonnx"]
TWICE = [followed, 2**23 - 1, "fc", 2**24 + 1, BITS_24, "qonnx"]  # twice the accumulator, and one against ties
LIMITS = {
    "C": Limit("c", layer, BITS_31, "fc", BITS_31 + 1, BITS_31, program="cc"),
    "C, requantized": Limit("c", followed, BITS_31, "fc", BITS_31 + 1, BITS_31, program="cc"),
    "ONNX": Limit("onnx", products, 8_421_505 * TOP - 1, "fc", 8_421_505 * TOP, BITS_31, "onnxruntime"),
    "ONNX, requantized": Limit("onnx", scaled, BITS_63, "q", BITS_63 + 1, BITS_63, "onnxruntime"),
    "QONNX": Limit("qonnx", *QONNX, options=("hls4ml",)),
    "QONNX, requantized": Limit("qonnx", *TWICE, options=("hls4ml",)),
    "QONNX for FINN": Limit("qonnx", *QONNX, options=("finn",)),
    "QONNX for FINN, requantized": Limit("qonnx", *TWICE, options=("finn",)),
    "memory": Limit("memory", factor, BITS_61, "f", BITS_61 + 1, BITS_61),
    "memory, requantized": Limit("memory", scaled, BITS_61, "q", BITS_61 + 1, BITS_61),
    "HLS": Limit("hls", *QONNX[:-1], "hls4ml", "g++", slow=True),
    "HLS, requantized": Limit("hls", *TWICE[:-1], "hls4ml", "g++", slow=True),
    "Verilog": Limit("verilog", layer, BITS_31, "fc", BITS_31 + 1, BITS_31, "da4ml", "iverilog"),
    "Verilog, requantized": Limit("verilog", followed, BITS_31, "fc", BITS_31 + 1, BITS_31, "da4ml", "iverilog"),
}
EVERY = [pytest.param(limit, id=name, marks=[pytest.mark.slow] * limit.slow) for name, limit in LIMITS.items()]
ENDING = {"c": ".h", "onnx": ".onnx", "qonnx": ".onnx"}
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # hls4ml's and qonnx's, of what they could not simplify
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def target(limit: Limit, folder: Path) -> tuple[Any, Path]:
    pytest.importorskip(limit.needs)
    return importlib.import_module(f"probq.export.{limit.module}"), folder / f"m{ENDING.get(limit.module, '')}"


@pytest.mark.parametrize("limit", EVERY)
def test_the_last_integer_that_fits_is_exact(limit, tmp_path):
    module, path = target(limit, tmp_path)
    if limit.program and not shutil.which(limit.program):
        pytest.skip(f"needs {limit.program}")
    network = limit.make(limit.most)
    (size,), hi = network.input.attributes["shape"], network.input.attributes["hi"]
    x = np.stack([np.full(size, hi), np.zeros(size, int), np.arange(size) % (hi + 1), np.full(size, hi - 1)])
    expected = network.run(x)
    if limit.make in (layer, products, factor):
        assert abs(expected).max() == limit.most
    module.write(network, path, *limit.options)
    np.testing.assert_array_equal(module.run(path, x), expected)


@pytest.mark.parametrize("limit", [pytest.param(limit, id=name) for name, limit in LIMITS.items()])
def test_the_next_is_refused_with_node_bound_and_limit(limit, tmp_path):
    module, path = target(limit, tmp_path)
    message = rf"node {limit.node}\b.* may reach {limit.bound:,}, the limit is {limit.limit:,} \(\d\d bits"
    with pytest.raises(ProbqError, match=message):
        module.write(limit.make(limit.most + 1), path, *limit.options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("one", [(), (2,)], ids=["one number", "a number each"])
def test_onnx_refuses_a_product_beyond_64_bits(one, tmp_path):
    """With the range of `multiply` alone beyond 64 bits, and with what a requantization makes of it."""
    pytest.importorskip("onnx")
    numbers = {"multiplier": np.full(one, 2**30), "add": np.full(one, 5), "shift": np.full(one, 60)}
    times = Node("times", "multiply", ("x",), tensors={"multiplier": np.full(one, 2**30)})
    code = Node("q", "requantize", ("times",), {"lo": 0, "hi": 9}, numbers)
    again = Node("again", "multiply", ("times",), tensors={"multiplier": np.full(one, 2**30)})
    for last in (code, again):
        with pytest.raises(ProbqError, match=rf"node {last.name} .*reach 2\d\d,\d.* {BITS_63:,} \(63 bits"):
            probq.export.onnx.write(model(times, last), tmp_path / "m.onnx")


@pytest.mark.parametrize("bias", [2**15 - 1, 2**15])
def test_lowering_refuses_a_layer_beyond_31_bits(bias):
    """Weights that sum to 2^15 meet inputs up to 2^16 - 1, all on grids of one."""
    net = nn.Sequential(nn.Linear(2, 1))
    net[0].weight.data, net[0].bias.data = torch.tensor([[2.0**14, 2.0**14]]), torch.tensor([float(bias)])
    plan = probq.Plan(weight=ladder(16), network_input=ladder(16, signed=False), scales="tensor")
    q = probq.quantize(net, torch.rand(4, 2), plan=plan)
    for _, quantizer in q.named_quantizers():
        quantizer.log2_scale.data.zero_()
    x = torch.tensor([[2.0**16, 2.0**16], [0, 0]])
    if bias == 2**15:
        with pytest.raises(
            ProbqError, match=rf"layer 0 .*may reach {BITS_31 + 1:,}, the limit is {BITS_31:,} \(31 bits"
        ):
            probq.lower(q)
        return
    lowered = probq.lower(q)
    assert (lowered(x) * lowered.output_scale).tolist() == [[2**31 - 1], [2**15 - 1]]
