"""Sums beyond 31 bits that are rounded next: every target that takes sums computes the interpreter's integers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import probq
from probq import IntegerModel, ProbqError
from probq.codebooks import ladder
from probq.export import c, onnx, qonnx
from probq.integer import Node

TOP = 2**16 - 1
SHAPE = (3, 6, 4)


def pool(name: str, source: str, kernel: list[int], stride: list[int], padding: list[int]) -> Node:
    pads = [[end, end] for end in padding]
    return Node(name, "sum_pool", (source,), {"kernel": kernel, "stride": stride, "padding": pads})


def total(name: str, source: str, axes: list[int], keepdims: bool = False) -> Node:
    return Node(name, "sum", (source,), {"axes": axes, "keepdims": keepdims})


def model(*sums: Node, signed: bool = False, last: Node | None = None) -> IntegerModel:
    """Numbers of 31 bits, sums of them, and a shift by 34 behind; half of the channels count backwards."""
    lo, hi = (-(2**15), 2**15 - 1) if signed else (0, TOP)
    numbers = {"multiplier": np.array(1), "add": np.array(2**27), "shift": np.array(28)}
    source = Node("x", "input", attributes={"shape": list(SHAPE), "scale": 1.0, "lo": lo, "hi": hi})
    times = Node("times", "multiply", ("x",), tensors={"multiplier": np.array([2**15, -(2**15), 3]).reshape(3, 1, 1)})
    code = Node("q", "requantize", (sums[-1].name,), {"lo": -128, "hi": 127}, numbers)
    return IntegerModel([source, times, *sums, last or code], (last or code).name, 1.0)


MODELS = {
    "all axes but channels": [total("s", "times", [1, 2])],
    "one axis after the other": [total("r", "times", [-1], True), total("s", "r", [1])],
    "windows": [pool("s", "times", [3, 4], [2, 1], [1, 2])],
    "windows, then axes": [pool("r", "times", [3, 2], [1, 2], [0, 0]), total("s", "r", [1, 2])],
    "windows that skip": [total("r", "times", [2], True), pool("s", "r", [1, 1], [4, 1], [0, 0])],
}


def inputs(network: IntegerModel) -> np.ndarray:
    lo, hi = (network.input.attributes[end] for end in ("lo", "hi"))
    rng = np.random.default_rng(0)
    ends = [np.full(SHAPE, lo), np.full(SHAPE, hi), np.resize([lo, hi], SHAPE)]
    return np.stack([*ends, *rng.integers(lo, hi, (5, *SHAPE), endpoint=True)])


def targets() -> Iterator[Any]:
    flags = {"sanitized": ("-O0", "-fsanitize=undefined", "-fno-sanitize-recover"), "fastest": ("-O3", "-march=native")}
    for name, some in flags.items():
        yield pytest.param(c, "m.h", {"flags": (*some, "-Werror")}, id=f"C, {name}")
    yield pytest.param(onnx, "m.onnx", {}, id="ONNX")


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(("target", "file", "options"), list(targets()))
@pytest.mark.parametrize("sums", MODELS.values(), ids=MODELS)
def test_a_target_computes_the_same_integers(sums, target, file, options, signed, tmp_path):
    if target is onnx:
        pytest.importorskip("onnxruntime")
    network = model(*sums, signed=signed)
    assert max(abs(network.values(inputs(network))["s"]).max(), *(n.bound for n in sums)) > 2**31
    target.write(network, tmp_path / file)
    np.testing.assert_array_equal(target.run(tmp_path / file, inputs(network), **options), network.run(inputs(network)))


def test_the_interpreter_sums_as_python_does():
    network = model(*MODELS["all axes but channels"])
    by_hand = [
        [min(max((sum(int(n) * m for n in channel.ravel()) + 2**27) >> 28, -128), 127) for channel, m in zip(
            x, (2**15, -(2**15), 3), strict=True)] for x in inputs(network)
    ]  # fmt: skip
    assert network.run(inputs(network)).tolist() == by_hand


def readers() -> Iterator[tuple[str, Node]]:
    yield "clipped", Node("last", "clip", ("s",), {"lo": 0, "hi": 255})
    yield "moved", Node("last", "reshape", ("s",), {"shape": [1, 3]})
    yield "added", Node("last", "add", ("s", "s"))


@pytest.mark.parametrize("last", [node for _, node in readers()], ids=[name for name, _ in readers()])
def test_c_refuses_a_wide_sum_that_something_else_reads(last, tmp_path):
    network = model(*MODELS["all axes but channels"], last=last)
    with pytest.raises(ProbqError, match=r"node s \(sum\) .*may reach 51,538,821,120, the limit is .* \(31 bits"):
        c.write(network, tmp_path / "m.h")


def test_c_refuses_a_wide_sum_that_is_the_output(tmp_path):
    network = model(*MODELS["all axes but channels"])
    with pytest.raises(ProbqError, match=r"node s \(sum\) .* \(31 bits"):
        c.write(IntegerModel(network.nodes[:-1], "s", 1.0), tmp_path / "m.h")


def test_qonnx_refuses_it_as_any_integer_beyond_24_bits(tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(ProbqError, match="24 bits"):
        qonnx.write(model(*MODELS["all axes but channels"]), tmp_path / "m.onnx")


@pytest.mark.parametrize(("target", "file"), [(c, "m.h"), (onnx, "m.onnx")], ids=["C", "ONNX"])
def test_a_lowered_mean_over_no_power_of_two_is_shifted_before_it_is_divided(target, file, tmp_path):
    """Over 14 x 14 positions of a convolution whose numbers take 26 bits."""
    if target is onnx:
        pytest.importorskip("onnxruntime")
    wide = {"weight": ladder(12), "network_input": ladder(12, signed=False), "input": ladder(8, signed=False)}
    layers = [nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)]
    x = torch.rand(32, 4, 14, 14)
    network = probq.lower(probq.quantize(nn.Sequential(*layers).eval(), x, probq.Plan(**wide, profile="shift")))
    assert [node.op for node in network.nodes].count("requantize") == 2
    target.write(network, tmp_path / file)
    report = probq.export.verify(network, tmp_path / file, x)
    assert (report.compared, report.differing) == (32, 0)
