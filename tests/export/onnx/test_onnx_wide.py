"""ONNX files compute integers beyond 31 bits exactly, although ONNX Runtime compares 64 bits wrongly on x86."""

import platform
import shutil
import subprocess
import sys

import numpy as np
import pytest
from networks import NETWORKS, SHIFTING, lowered
from random_models import inputs, seeded
from wide_models import wide

import probq
from probq import IntegerModel
from probq.export import qonnx
from probq.export.onnx import run, write
from probq.integer import Node

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

COMPARE = {
    "Clip", "Min", "Max", "Relu", "MaxPool", "Where", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal",
    "ReduceMax", "ReduceMin", "ArgMax", "ArgMin", "TopK", "Sign", "Abs",
}  # fmt: skip
BEYOND = 13  # a seed whose model has integers beyond 63 bits, which no file holds
QEMU = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
COMPARED = """
import sys
from pathlib import Path
import numpy as np
from probq.export.onnx import run
for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    given = np.load(path.with_suffix(".npz"))
    for optimize in (False, True):
        print(path.stem, int((run(path, given["x"], optimize) != given["y"]).sum()))
"""


def differing(model, path, integers):
    expected = model.run(integers)
    return [int((run(path, integers, optimize) != expected).sum()) for optimize in (False, True)]


def compared_in_64_bits(path):
    """Operators of a file that compare integers of 64 bits, and those that look up what they give."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(path)), data_prop=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input]}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    wide, found, behind = {onnx.TensorProto.INT64, onnx.TensorProto.UINT64}, [], set()
    for node in graph.node:
        compared = node.input[:1] if node.op_type.startswith("Reduce") else node.input  # not the axes
        given = [types[name] for name in compared if name in types]
        assert given or node.op_type not in COMPARE, f"{node.op_type} has no known type"
        if node.op_type in COMPARE and wide.intersection(given):
            found.append(node.op_type)
            behind.update(node.output)
        elif behind.intersection(node.input):
            found += [node.op_type] * (node.op_type == "Gather" and node.input[1] in behind)
            behind.update(node.output)
    return found


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_random_models_beyond_31_bits(packed, tmp_path):
    written = 0
    for seed in range(60):
        model = wide(seed)
        try:
            write(model, tmp_path / "m.onnx", packed)
        except probq.ProbqError as error:
            assert "63 bits" in str(error)  # noqa: PT017
            continue
        written += 1
        assert differing(model, tmp_path / "m.onnx", inputs(model, 8)) == [0, 0], seed
        assert compared_in_64_bits(tmp_path / "m.onnx") == [], seed
    assert written > 50


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_no_operator_compares_64_bits(packed, tmp_path):
    for seed in range(40):
        try:
            write(seeded(seed), tmp_path / "m.onnx", packed)
        except probq.ProbqError as error:
            assert "63 bits" in str(error)  # noqa: PT017
            continue
        assert compared_in_64_bits(tmp_path / "m.onnx") == [], seed


@pytest.mark.filterwarnings("ignore:.*has negative values", "ignore:the posterior was never fitted")
@pytest.mark.parametrize("flavour", ["hls4ml", "finn"])
@pytest.mark.parametrize("network", ["text", "branches", "signed mlp"])
def test_no_operator_of_qonnx_compares_64_bits(network, flavour, tmp_path):
    pytest.importorskip("qonnx")
    model = lowered(NETWORKS[network], SHIFTING["tensor"])[0][0]
    qonnx.write(model, tmp_path / "m.onnx", flavour)
    graph = onnx.load(str(tmp_path / "m.onnx")).graph  # nothing infers types behind its own operators
    wide = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT64}
    wide |= {value.name for value in graph.input if value.type.tensor_type.elem_type == onnx.TensorProto.INT64}
    assert "Cast" not in {node.op_type for node in graph.node}
    assert COMPARE.isdisjoint(node.op_type for node in graph.node if wide.intersection(node.input))


def test_what_compares_64_bits_is_found(tmp_path):
    """Also in front of a look-up, through operators that compare nothing."""
    helper, wide_type = onnx.helper, onnx.TensorProto.INT64
    nodes = [
        helper.make_node("Max", ["x", "low"], ["a"]),
        helper.make_node("Sub", ["a", "low"], ["b"]),
        helper.make_node("Gather", ["table", "b"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, wide_type, ["n"]) for name in "xy"]
    constants = [helper.make_tensor("low", wide_type, [], [3]), helper.make_tensor("table", wide_type, [2], [5, 6])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)), str(tmp_path / "m.onnx"))
    assert compared_in_64_bits(tmp_path / "m.onnx") == ["Max", "Gather"]


@pytest.mark.parametrize(
    ("multiplier", "add", "shift"),
    [(1, -(2**40), 0), (1, 2**40, 0), (-3, -(2**33) - 5, 1), (1, 7 - 2**31, 0), (274, 2**45, 2), (-1, -(2**61), 20)],
)
@pytest.mark.parametrize(("lo", "hi"), [(0, 9), (-8, 7), (-(2**33), -(2**33) + 9)])
def test_a_requantization_that_adds_far_more_than_its_input(multiplier, add, shift, lo, hi, tmp_path):
    """What is added, or what brings the shifted numbers back, passes 31 bits where no product does; then a look-up."""
    numbers = {"multiplier": np.array(multiplier), "add": np.array(add), "shift": np.array(shift)}
    table = {"table": np.arange(hi - lo + 1) ** 3}
    nodes = [
        Node("x", "input", attributes={"shape": [4], "scale": 1.0, "lo": -8, "hi": 7}),
        Node("q", "requantize", ("x",), {"lo": lo, "hi": hi}, numbers),
        Node("t", "table", ("q",), {"first": lo}, table),
    ]
    model, x = IntegerModel(nodes, "t", 1.0), np.arange(-8, 8).reshape(4, 4)
    write(model, tmp_path / "m.onnx")
    by_hand = [[(min(max((v * multiplier + add) >> shift, lo), hi) - lo) ** 3 for v in row] for row in x.tolist()]
    assert run(tmp_path / "m.onnx", x).tolist() == by_hand == model.run(x).tolist()


@pytest.mark.skipif(QEMU is None or platform.machine() != "x86_64", reason="needs qemu-x86_64 (qemu-user) on x86-64")
def test_a_processor_without_avx512(tmp_path):
    for seed in (seed for seed in range(21) if seed != BEYOND):
        model = wide(seed)
        x = inputs(model, 8)
        write(model, tmp_path / f"{seed}.onnx", packed=seed % 2 == 1)
        np.savez(tmp_path / f"{seed}.npz", x=x, y=model.run(x))
    command = [QEMU, "-cpu", "Haswell", sys.executable, "-c", COMPARED, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.split()
    assert len(said) == 80
    assert set(said[1::2]) == {"0"}


def far(seed):
    """A model whose clips, maxima and look-ups meet integers around 2^31, 2^32 and beyond, of both signs."""
    rng = np.random.default_rng(seed)
    reach, nodes = (
        int(rng.choice([2**31, 2**32, 2**33, 2**40])),
        [Node("x", "input", attributes={"shape": [3, 3, 4], "scale": 1.0, "lo": -8, "hi": 8})],
    )
    near = lambda: int(rng.choice([-(2**32), -(2**31), 0, 2**31, 2**32])) + int(rng.integers(-300, 300))  # noqa: E731
    nodes.append(Node("m", "multiply", ("x",), tensors={"multiplier": rng.integers(-reach // 8, reach // 8, 4)}))
    shift = int(rng.integers(0, 3))
    numbers = {"multiplier": np.array(1), "add": np.array(near()), "shift": np.array(shift)}
    lo, hi = sorted((near(), near()))
    last = [
        Node("c", "clip", ("m",), {"lo": lo, "hi": None}),
        Node("c", "clip", ("m",), {"lo": None, "hi": hi}),
        Node("c", "requantize", ("m",), {"lo": lo, "hi": hi}, numbers),
        Node("c", "requantize", ("m",), {"lo": 0, "hi": 255}, numbers),
    ][seed % 4]
    spec = {"kernel": [2, 2], "stride": [1, 1], "dilation": [1, 1], "padding": [[0, 0]] * 2, "ceil_mode": False}
    nodes += [last, Node("p", "max_pool", ("m" if seed % 3 else "c",), spec)]
    code = Node("q", "requantize", ("p",), {"lo": 0, "hi": 9}, numbers | {"shift": np.array(int(rng.integers(0, 34)))})
    nodes += [code, Node("t", "table", ("q",), {"first": 0}, {"table": rng.integers(-(2**40), 2**40, 10)})]
    pooled = Node("s", "sum", ("p",), {"axes": [1, 2], "keepdims": False})
    return IntegerModel([*nodes, pooled, Node("o", "add", ("t", "s"))], str(rng.choice(["c", "t", "o"])), 1.0)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_clips_and_maxima_beyond_31_bits(packed, tmp_path):
    """Where two numbers agree in their upper 32 bits, ONNX Runtime's own `Clip`, `Min` and `Max` of int64 are wrong."""
    for seed in range(60):
        model = far(seed)
        write(model, tmp_path / "m.onnx", packed)
        assert differing(model, tmp_path / "m.onnx", inputs(model, 8)) == [0, 0], seed
        assert compared_in_64_bits(tmp_path / "m.onnx") == [], seed
