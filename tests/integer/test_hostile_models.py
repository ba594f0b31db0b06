"""Integer models that ask for more than anybody has, from files of a few hundred bytes."""

import hashlib
import importlib
import json
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from fuzzing import forge, outcome, read

from probq.integer import IntegerModel, Node
from probq.integer.ensemble import Ensemble
from probq.integer.packing import Packing
from probq.integer.shapes import shapes_of
from probq.utils.errors import ProbqError

SIZES = (10**6, 2**20, 10**8, 2**31 - 1)
POOL = {"stride": [1], "padding": [[0, 0]]}
ONE = {"weight": np.ones((1, 1, 1), int), "bias": np.zeros(1, int)}
TWO = {"weight": np.ones((1, 1, 2), int), "bias": np.zeros(1, int)}


def source(*shape: int, **attributes: Any) -> Node:
    return Node("x", "input", (), {"shape": list(shape), "scale": 1.0, "lo": 0, "hi": 3} | attributes)


def after(op: str, attributes: dict[str, Any] | None = None, tensors: dict[str, np.ndarray] | None = None) -> Node:
    return Node("y", op, ("x",), attributes or {}, tensors or {})


def conv(tensors: dict[str, np.ndarray], **attributes: Any) -> Node:
    usual = {"stride": [1], "padding": [[0, 0]], "dilation": [1], "groups": 1, "transposed": False}
    return after("conv", usual | attributes, tensors)


def chain(count: int, op: str, attributes: dict[str, Any], uses: int) -> list[Node]:
    nodes = [source(1)]
    for k in range(count):
        nodes.append(Node(f"y{k}", op, (nodes[-1].name,) * uses, attributes))
    return nodes


def asking(size: int) -> dict[str, list[Node]]:
    """Each of few bytes; what they ask for grows with the size."""
    pool = POOL | {"dilation": [1], "ceil_mode": False, "kernel": [size]}
    return {
        "padding": [source(1, 1), after("pad", {"padding": [[size, size]]})],
        "padding of a plane": [source(1, 1, 1), after("pad", {"padding": [[size, size]] * 2})],
        "padding of a convolution": [source(1, 1), conv(ONE, padding=[[size, size]])],
        "dilation": [source(1, 1), conv(TWO, padding=[[size, size]], dilation=[size])],
        "transposed stride": [source(1, 2), conv(ONE, stride=[size], transposed=True)],
        "transposed dilation": [source(1, 2), conv(TWO, dilation=[size], transposed=True)],
        "output padding": [source(1, 2), conv(ONE, output_padding=[size], transposed=True)],
        "repeat": [source(1, 1), after("repeat", {"factors": [size]})],
        "repeat of a plane": [source(1, 1), after("repeat", {"factors": [size, size]})],
        "sum of a kernel": [source(1, 1), after("sum_pool", POOL | {"kernel": [size], "padding": [[size, size]]})],
        "maximum of a kernel": [source(1, 1), after("max_pool", pool | {"padding": [[size // 2, size // 2]]})],
        "rounded up": [source(1, 1), after("max_pool", pool | {"stride": [size], "ceil_mode": True})],
        "input": [source(size), after("clip", {"lo": 0, "hi": 1})],
    }


CHAINS = {
    "doubled by joining": chain(60, "concat", {"axis": 0}, 2),
    "doubled by repeating": chain(60, "repeat", {"factors": [2]}, 1),
    "doubled by adding": chain(70, "add", {}, 2),
    "a square kernel": [source(1, 2000, 2000), after("sum_pool", {"kernel": [999] * 2, "stride": [1] * 2,
                                                                  "padding": [[0, 0]] * 2})],
}  # fmt: skip
CASES = {f"{name} {size}": nodes for size in SIZES for name, nodes in asking(size).items()} | CHAINS


def use(nodes: list[Node], folder: Path) -> str:
    """What becomes of a model in every use there is: the number of uses, or the refusal."""
    model = outcome(lambda: IntegerModel(nodes, nodes[-1].name, 1.0))
    if isinstance(model, ProbqError):
        return str(model)
    x = np.zeros((2, *model.input.attributes["shape"]), np.int8)
    outcome(lambda: model(x))
    for name, ending in (("c", ".h"), ("onnx", ".onnx"), ("qonnx", "_q.onnx"), ("memory", "_memory")):
        target = importlib.import_module(f"probq.export.{name}")
        outcome(partial(target.write, model, folder / f"m{ending}"))
    return "used"


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_out_of_proportion(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    tracemalloc.start()
    try:
        found = use(CASES[name], tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**31
    finally:
        tracemalloc.stop()
    if name in CHAINS or name.endswith(str(2**31 - 1)):
        assert "one example takes" in found or "may reach" in found or "kernel" in found


def test_what_networks_need_is_in_proportion() -> None:
    """A layer with 64 channels on a picture of 1,080 lines, and one of 25,088 x 4,096 one-bit weights."""
    weight = np.ones((64, 3, 3, 3), int)
    attributes = {"stride": [1] * 2, "padding": [[1, 1]] * 2, "dilation": [1] * 2, "groups": 1, "transposed": False}
    packing = {"weight": Packing((range(-128, 128),), np.array(0))}
    tensors = {"weight": weight, "bias": np.zeros(64, int)}
    IntegerModel([source(3, 1080, 1920), Node("y", "conv", ("x",), attributes, tensors, packing)], "y", 1.0)
    wide = {"weight": np.broadcast_to(np.int64(1), (4096, 25088)), "bias": np.zeros(4096, int)}
    IntegerModel([source(25088), Node("y", "linear", ("x",), {}, wide, {"weight": Packing((range(2),), np.array(0))})],
                 "y", 1.0)  # fmt: skip


def saved(tmp_path: Path, nodes: list[Node], metadata: Any = None) -> Path:
    path = tmp_path / "m.safetensors"
    IntegerModel(nodes, nodes[-1].name, 1.0, metadata).save(path)
    return path


def test_weights_of_no_bits_and_a_channel_of_one(tmp_path: Path) -> None:
    """Of the second, one channel of 64 has bits: eight integers for each bit of the file are loaded, not sixty-four."""
    zero = {"weight": np.zeros((3, 2), int), "bias": np.zeros(3, int)}
    path = saved(tmp_path, [source(2), after("linear", {}, zero)])
    blobs, manifest = read(path)
    text = json.dumps(manifest).replace("[3, 2]", "[16384, 16384]").replace("[3]", "[16384]").replace("[2]", "[16384]")
    forge(path, blobs, json.loads(text))
    assert path.stat().st_size < 1500
    with pytest.raises(ProbqError, match="out of proportion"):
        IntegerModel.load(path)
    rung, size = np.zeros((64, 1), int), 2**19
    rung[0] = 1
    packing = {"weight": Packing((range(1), range(2)), rung)}
    tensors = {"weight": np.broadcast_to(np.int64(0), (64, size)), "bias": np.zeros(64, int)}
    with pytest.raises(ProbqError, match="remove pruned channels"):
        saved(tmp_path, [source(size), Node("y", "linear", ("x",), {}, tensors, packing)])


def test_twenty_thousand_layers() -> None:
    tensors = {"weight": np.ones((1, 1), int), "bias": np.zeros(1, int)}
    node = after("linear", {}, tensors)
    with pytest.raises(ProbqError, match="at most 4,096 nodes, not 20,001"):
        IntegerModel([source(1), *[node] * 20_000], "y", 1.0)


def test_numbers_beyond_float64(tmp_path: Path) -> None:
    for scale in (2**2000, 10**400):
        with pytest.raises(ProbqError, match=r"power of two|beyond float64"):
            source(1, scale=scale)
        with pytest.raises(ProbqError, match="output_scale"):
            IntegerModel([source(1)], "x", scale)
        with pytest.raises(ProbqError, match="beyond float64"):
            IntegerModel([source(1)], "x", 1.0, {"bops": scale})
        with pytest.raises(ProbqError, match="noise"):
            Ensemble([IntegerModel([source(1)], "x", 1.0)], noise=scale)
    path = saved(tmp_path, [source(1)], {"bops": 1, "layers": [{"name": "x", "macs": 2}]})
    blobs, manifest = read(path)
    for number in ("1" + "0" * 400, "1e400", "-1e999"):
        for key in ("bops", "percent", "limit"):
            manifest["metadata"][key] = "HERE"
        text = json.dumps(manifest).replace('"HERE"', number)
        metadata = {"probq": text, "probq.sha256": hashlib.sha256(text.encode()).hexdigest()}
        safetensors.numpy.save_file(blobs, path, metadata)
        with pytest.raises(ProbqError, match="metadata must be JSON"):
            IntegerModel.load(path)


def test_shapes_are_those_of_the_interpreter() -> None:
    """On models of every operation; the interpreter computes, `shapes_of` does not."""
    from random_models import inputs, seeded

    for seed in range(60):
        model = seeded(seed)
        values = model.values(inputs(model, 2))
        shapes = shapes_of(model.nodes)
        for node in model.nodes:
            assert shapes[node.name] == values[node.name].shape[1:] == model.ranges[node.name].shape
            assert model.ranges[node.name].low <= values[node.name].min()
            assert values[node.name].max() <= model.ranges[node.name].high


@pytest.mark.parametrize("step", [1, 3, 2**30, 2**31 - 1])
def test_levels_beyond_exact_integers_are_refused(step: int) -> None:
    """And the last ones that fit are computed as Python's integers say."""
    numbers = {"multiplier": np.array(2**22), "add": np.array(0), "shift": np.array(0)}
    for op, limit in (("input", 2**53), ("requantize", 2**62)):
        most = (limit - 1) // step
        limits = {"lo": 0, "start": 0, "step": step}
        if op == "input":
            image = source(1, hi=most, **{k: v for k, v in limits.items() if k != "lo"})
            model = IntegerModel([image], "x", 1.0)
            assert model.quantize_input([[2.0**66]]).tolist() == [[step * most]]
            with pytest.raises(ProbqError, match=r"exact integers, 2\^53"):
                source(1, hi=most + 1, **{k: v for k, v in limits.items() if k != "lo"})
        else:
            most = min(most, 2**61)
            node = after(op, limits | {"hi": most}, numbers)
            model = IntegerModel([source(1, hi=2**40), node], "y", 1.0)
            assert model([[2.0**40]]).tolist() == [[min(2**62, most) * step]]
            if step > 1:
                with pytest.raises(ProbqError, match="within int64"):
                    after(op, limits | {"hi": 2**61}, numbers)
