"""IntegerModel: its meaning, its file, and every way in which a file can be wrong."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import torch.nn.functional as F

from probq.integer import IntegerModel, Node
from probq.integer.packing import Packing, pack
from probq.integer.ports.inputs import CHUNK
from probq.utils.errors import ProbqError


@contextlib.contextmanager
def memory_below(mebibytes: float) -> Iterator[None]:
    """Fails where Python and numpy together ever hold more than this beyond what they held before."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mebibytes * 2**20
    finally:
        tracemalloc.stop()


SQUARE = {"stride": [1, 1], "padding": [[0, 0], [0, 0]]}
POOL = SQUARE | {"kernel": [2, 2], "stride": [2, 2], "dilation": [1, 1], "ceil_mode": False}
CONV = SQUARE | {"dilation": [1, 1], "groups": 1, "transposed": False}


def rescale(name: str, source: str, shift: int, hi: int) -> Node:
    tensors = {"multiplier": np.array(1), "add": np.array(2 ** (shift - 1)), "shift": np.array(shift)}
    return Node(name, "requantize", (source,), {"lo": 0, "hi": hi}, tensors, bound=hi)


def layer(name: str, source: str, rng: np.random.Generator, shape: tuple[int, ...], width: int) -> Node:
    half = 2 ** (width - 1)
    weight = rng.integers(1 - half, half, shape)
    tensors = {"weight": weight, "bias": rng.integers(-500, 500, shape[0])}
    packing = {"weight": Packing((range(-half, half),), np.array(0))}
    conv = len(shape) > 2
    return Node(name, "conv" if conv else "linear", (source,), CONV if conv else {}, tensors, packing, 2**30)


def lenet(seed: int = 0) -> IntegerModel:
    """32C5-MP2-64C5-MP2-512-10 for 28x28 images, weights of 4/2/8/8 bits, inputs of 8/4/4/8 bits."""
    rng = np.random.default_rng(seed)
    nodes = [
        Node("x", "input", (), {"shape": [1, 28, 28], "scale": 2.0**-8, "lo": 0, "hi": 255}, bound=255),
        layer("conv1", "x", rng, (32, 1, 5, 5), 4),
        rescale("relu1", "conv1", 8, 15),
        Node("pool1", "max_pool", ("relu1",), POOL, bound=15),
        layer("conv2", "pool1", rng, (64, 32, 5, 5), 2),
        rescale("relu2", "conv2", 6, 15),
        Node("pool2", "max_pool", ("relu2",), POOL, bound=15),
        Node("flat", "reshape", ("pool2",), {"shape": [1024]}, bound=15),
        layer("fc1", "flat", rng, (512, 1024), 8),
        rescale("relu3", "fc1", 9, 255),
        layer("fc2", "relu3", rng, (10, 512), 8),
    ]
    return IntegerModel(nodes, "fc2", 2.0**-20, {"percent": 0.4, "layers": ["conv1", "conv2", "fc1", "fc2"]})


def small() -> IntegerModel:
    """A model with every way to store a tensor: ranges, lists, rungs for one, per channel and per weight, 0 bits."""
    x = Node("x", "input", attributes={"shape": (3,), "scale": 0.5, "lo": -8, "hi": 7}, bound=8)
    codebooks = (range(1), range(-1, 2, 2), (-4, -2, -1, 0, 1, 2, 4))
    per_channel = Packing(codebooks, np.array([[0], [1], [2], [2]]))
    a = Node(
        "a", "linear", ("x",), {},
        {"weight": np.array([[0, 0, 0], [1, -1, 1], [4, -2, 0], [-4, 1, 2]]), "bias": np.arange(4)},
        {"weight": per_channel, "bias": Packing((range(1), range(8)), np.array(1))}, 100,
    )  # fmt: skip
    per_weight = Packing(codebooks, np.array([[0, 1, 2, 1]]))
    b = Node("b", "linear", ("a",), {}, {"weight": np.array([[0, -1, 2, 1]]), "bias": np.array([-7])},
             {"weight": per_weight}, 1000)  # fmt: skip
    zero = Packing((range(1), range(5, 6)), np.array(0))
    c = Node("c", "linear", ("a",), {}, {"weight": np.zeros((1, 4), int), "bias": np.array([3])}, {"weight": zero}, 3)
    return IntegerModel([x, a, b, c, Node("sum", "add", ("b", "c"), bound=1003)], "sum", 0.125, {"note": "é"})


def test_meaning_by_hand() -> None:
    model = small()
    x = np.array([[0.25, -0.3, 99.0], [0.0, 0.0, 0.0]])  # integers 1, -1, 7 and 0
    assert model.quantize_input(x).tolist() == [[1, -1, 7], [0, 0, 0]]
    # a = 0, 1-(-1)+7+1, 4+2+2, -4-1+14+3; b = -10+2*8+12-7; c = 3
    assert model.values(model.quantize_input(x[:1]))["a"].tolist() == [[0, 10, 8, 12]]
    assert model(x).tolist() == [[-10 + 16 + 12 - 7 + 3], [-1 + 4 + 3 - 7 + 3]]
    assert model(x).dtype == np.int64
    assert model(torch.tensor(x)).tolist() == model.run(model.quantize_input(x)).tolist() == model(x).tolist()


def test_lenet_is_torch_in_float64() -> None:
    model, rng = lenet(), np.random.default_rng(1)
    x = rng.random((7, 1, 28, 28))
    weight = {
        node.name: {k: torch.tensor(v).double() for k, v in node.tensors.items()}
        for node in model.nodes
        if node.tensors
    }
    requantize = lambda y, shift, hi: (y / 2**shift + 0.5).floor().clamp(0, hi)  # noqa: E731
    y = requantize(torch.tensor(x) * 256, 0, 255)
    y = F.max_pool2d(requantize(F.conv2d(y, **weight["conv1"]), 8, 15), 2)
    y = F.max_pool2d(requantize(F.conv2d(y, **weight["conv2"]), 6, 15), 2)
    y = F.linear(requantize(F.linear(y.flatten(1), **weight["fc1"]), 9, 255), **weight["fc2"])
    np.testing.assert_array_equal(model(x), y.numpy())
    assert len(np.unique(model(x))) > 20


def test_chunks_do_not_show() -> None:
    x = np.random.default_rng(0).normal(0, 4, (CHUNK // 3 + 5, 3))
    model = small()
    whole = model(x)
    assert whole.shape == (len(x), 1)
    np.testing.assert_array_equal(whole, model.values(model.quantize_input(x))["sum"])
    assert model(x[:0]).shape == (0, 1)


def test_memory_of_many_nodes_is_given_back() -> None:
    """400 nodes of 2^17 integers would take 400 MiB together."""
    nodes = [Node("0", "input", attributes={"shape": [2**17], "scale": 1.0, "lo": 0, "hi": 9})]
    nodes += [Node(str(k + 1), "clip", (str(k),), {"lo": 0, "hi": 9}) for k in range(400)]
    model, x = IntegerModel(nodes, "400", 1.0), np.ones((2, 2**17))
    with memory_below(20):
        assert model(x).sum() == 2**18
    assert len(model.values(x[:1].astype(int))) == 401


def test_an_output_that_is_used_again_and_a_node_that_is_not() -> None:
    x = Node("x", "input", attributes={"shape": [1], "scale": 1.0, "lo": 0, "hi": 9})
    used = Node("y", "clip", ("x",), {"lo": None, "hi": 4})
    unused = Node("z", "add", ("y", "x"))
    assert IntegerModel([x, used, unused], "y", 1.0)([[7.0]]).tolist() == [[4]]
    assert IntegerModel([x], "x", 1)([[7.0]]).tolist() == [[7]]


def test_repr_and_input() -> None:
    # 800*4 + 51200*2 + 524288*8 + 5120*8 bits of weights, then biases and requantizations
    bits = sum(node.bits for node in lenet().nodes)
    assert 800 * 4 + 51200 * 2 + 524288 * 8 + 5120 * 8 < bits < 4_348_000
    assert repr(lenet()) == f"IntegerModel(11 nodes, 4 layers, {bits:,} parameter bits)"
    assert small().input.name == "x"


@pytest.mark.parametrize("make", [small, lenet])
def test_round_trip(tmp_path: Path, make: Callable[[], IntegerModel]) -> None:
    model, path = make(), tmp_path / "m.safetensors"
    model.save(path)
    loaded = IntegerModel.load(str(path))
    assert (loaded.output, loaded.output_scale, loaded.metadata) == (model.output, model.output_scale, model.metadata)
    for ours, theirs in zip(model.nodes, loaded.nodes, strict=True):
        for name in ("name", "op", "inputs", "attributes", "bound", "bits"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert set(ours.tensors) == set(theirs.tensors)
        for name, tensor in ours.tensors.items():
            assert theirs.tensors[name].dtype == np.int64
            np.testing.assert_array_equal(theirs.tensors[name], tensor)
            assert theirs.packing[name].codebooks == ours.packing_of(name).codebooks
            np.testing.assert_array_equal(theirs.packing[name].rung, ours.packing_of(name).rung)
    assert loaded.sha256() == model.sha256() == make().sha256()
    x = np.random.default_rng(0).normal(0, 3, (4, *model.input.attributes["shape"]))
    np.testing.assert_array_equal(loaded(x), model(x))
    before = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_hash_sees_every_part() -> None:
    model = small()
    nodes = list(model.nodes)
    variants = [
        IntegerModel(nodes, "sum", 0.25, model.metadata),
        IntegerModel(nodes, "b", 0.125, model.metadata),
        IntegerModel(nodes, "sum", 0.125, {}),
        IntegerModel([*nodes[:-1], dataclasses.replace(nodes[-1], bound=1)], "sum", 0.125, model.metadata),
        IntegerModel([*nodes[:-1], dataclasses.replace(nodes[-1], inputs=("c", "b"))], "sum", 0.125, model.metadata),
    ]
    nodes[2] = dataclasses.replace(nodes[2], tensors=nodes[2].tensors | {"bias": np.array([-6])})
    variants.append(IntegerModel(nodes, "sum", 0.125, model.metadata))
    assert len({model.sha256(), *(variant.sha256() for variant in variants)}) == 7


def test_size_is_that_of_the_bits(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    lenet().save(path)
    assert 0 < path.stat().st_size - sum(node.bits for node in lenet().nodes) / 8 < 8192


def test_others_can_read_the_file(tmp_path: Path) -> None:
    """The layout as documented, read with nothing of probq."""
    path = tmp_path / "m.safetensors"
    small().save(path)
    blobs = safetensors.numpy.load_file(path)
    assert blobs["b/weight"].tolist() == [0b1_101_0]  # 0 bits, code 0, code 5 of (-4, -2, -1, 0, 1, 2, 4), code 1
    assert blobs["b/weight/rung"].tolist() == [0b01_10_01_00]
    assert blobs["c/weight"].tolist() == []
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["probq.sha256"] == hashlib.sha256(metadata["probq"].encode()).hexdigest() == small().sha256()
    manifest = json.loads(metadata["probq"])
    assert (manifest["format"], manifest["version"]) == ("probq.integer", 1)
    entry = manifest["nodes"][1]["tensors"]["weight"]
    assert entry["codebooks"][1:] == [
        {"bits": 1, "signed": True, "start": -1, "step": 2, "count": 2},
        {"bits": 3, "signed": True, "levels": [-4, -2, -1, 0, 1, 2, 4]},
    ]
    assert entry["sha256"] == hashlib.sha256(blobs["a/weight"].tobytes()).hexdigest()


# Saving


def test_save_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "missing" / "m", tmp_path / "folder"):
        with pytest.raises(ProbqError, match="cannot write"):
            small().save(path)
    assert os.listdir(tmp_path) == ["folder"]


def test_value_off_its_codebook_is_named_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_text("old")
    x, a, *rest = small().nodes
    a = dataclasses.replace(a, tensors=a.tensors | {"bias": np.array([0, 1, 2, 8])})
    with pytest.raises(ProbqError, match="node a, tensor bias: 8 is not a level"):
        IntegerModel([x, a, *rest], "sum", 1.0).save(path)
    assert path.read_text() == "old"


# Models that cannot be built

X = {"shape": [1], "scale": 1.0, "lo": 0, "hi": 1}
W = {"weight": np.eye(2, dtype=int), "bias": np.zeros(2, int)}
BAD_NODES: dict[str, tuple[dict[str, Any], str]] = {
    "slash": ({"name": "a/b", "op": "add"}, "without a slash"),
    "empty name": ({"name": "", "op": "add"}, "without a slash"),
    "operation": ({"op": "attention"}, "unknown operation 'attention'; use one of input, linear"),
    "inputs": ({"op": "add", "inputs": ("a",)}, "takes 2 inputs, not 1"),
    "no input": ({"op": "concat", "attributes": {"axis": 0}}, "takes one or more inputs, not 0"),
    "missing tensor": ({"op": "embedding", "inputs": ("a",)}, "tensor weight is missing"),
    "unknown tensor": ({"op": "add", "inputs": ("a", "b"), "tensors": W}, "unknown tensor 'bias'"),
    "missing attribute": ({"op": "input", "attributes": {"shape": [1], "scale": 1.0, "lo": 0}}, "hi is missing"),
    "unknown attribute": ({"op": "input", "attributes": X | {"mean": 0}}, "unknown attribute 'mean'"),
    "scale": ({"op": "input", "attributes": X | {"scale": 0.3}}, "scale must be a positive power of two"),
    "infinite scale": ({"op": "input", "attributes": X | {"scale": np.inf}}, "must be JSON"),
    "boolean as integer": ({"op": "input", "attributes": X | {"hi": True}}, "hi must be an integer"),
    "numpy integer": ({"op": "input", "attributes": X | {"hi": np.int64(1)}}, "must be JSON"),
    "negative size": ({"op": "input", "attributes": X | {"shape": [-1]}}, "shape must be a list of sizes"),
    "limits": ({"op": "input", "attributes": X | {"lo": 2}}, "lo = 2 is above hi = 1"),
    "inexact limits": ({"op": "input", "attributes": X | {"hi": 2**53}}, "exact integers"),
    "index": ({"op": "input", "attributes": X | {"index": True}}, "unknown attribute"),
    "axes of a tensor": ({"op": "linear", "inputs": ("a",), "tensors": W | {"bias": np.array(0)}}, "bias has 0 axes"),
    "bias": ({"op": "linear", "inputs": ("a",), "tensors": W | {"bias": np.zeros(1, int)}}, "1 elements for 2 outputs"),
    "float tensor": ({"op": "linear", "inputs": ("a",), "tensors": W | {"bias": np.zeros(2)}}, "bias holds float64"),
    "entries": ({"op": "max_pool", "inputs": ("a",), "attributes": POOL | {"stride": [1]}}, "1 entries for 2 spatial"),
    "zero stride": ({"op": "max_pool", "inputs": ("a",), "attributes": POOL | {"stride": [0, 1]}}, "positive integers"),
    "pairs": ({"op": "max_pool", "inputs": ("a",), "attributes": POOL | {"padding": [1, 1]}}, "list of pairs"),
    "bound": ({"op": "add", "inputs": ("a", "b"), "bound": 2**53}, r"2\^53"),
    "negative bound": ({"op": "add", "inputs": ("a", "b"), "bound": -1}, "from 0"),
    "packing": ({"op": "add", "inputs": ("a", "b"), "packing": {"w": Packing((range(1),), np.array(0))}}, "no such"),
    "rungs": (
        {"op": "linear", "inputs": ("a",), "tensors": W, "packing": {"bias": Packing((range(1),), np.zeros(3, int))}},
        "do not broadcast",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "message"), BAD_NODES.values(), ids=BAD_NODES)
def test_bad_nodes(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ProbqError, match=message):
        Node(**({"name": "n"} | parts))


def test_transposed_bias_and_spatial_axes() -> None:
    weight = np.zeros((4, 3, 1, 1), int)
    attributes = CONV | {"groups": 2, "transposed": True, "output_padding": [0, 0]}
    Node("t", "conv", ("x",), attributes, {"weight": weight, "bias": np.zeros(6, int)})
    with pytest.raises(ProbqError, match="4 elements for 6 outputs"):
        Node("t", "conv", ("x",), attributes, {"weight": weight, "bias": np.zeros(4, int)})
    with pytest.raises(ProbqError, match="2 entries for 1 spatial"):
        Node("t", "conv", ("x",), CONV, {"weight": weight[..., 0], "bias": np.zeros(4, int)})


def test_bad_graphs() -> None:
    x = Node("x", "input", attributes=X)
    y = Node("y", "clip", ("x",), {"lo": 0, "hi": 1})
    for nodes, output, scale, message in [
        ([x, x], "x", 1.0, "two nodes are named x"),
        ([y, x], "y", 1.0, "takes 'x', which is not an earlier node"),
        ([x, y], "z", 1.0, "the output 'z' is not a node"),
        ([x, Node("x2", "input", attributes=X)], "x", 1.0, "2 input nodes needs arguments"),
        ([], "x", 1.0, "not a node"),
        ([x], "x", 0.0, "positive finite"),
        ([x], "x", float("nan"), "positive finite"),
        ([x], "x", "1", "positive finite"),
    ]:
        with pytest.raises(ProbqError, match=message):
            IntegerModel(nodes, output, scale)  # type: ignore[arg-type]
    with pytest.raises(ProbqError, match="metadata must be JSON"):
        IntegerModel([x], "x", 1.0, {"bits": np.array(3)})
    with pytest.raises(ProbqError, match="metadata must be JSON"):
        IntegerModel([x], "x", 1.0, {"loss": float("nan")})


def test_what_may_be_given_to_a_model() -> None:
    model = small()
    for wrong, message in [
        (np.zeros((2, 4)), r"\[batch, 3\]"), (np.full((1, 3), np.nan), "NaN"), (np.float64(0), "batch"),
    ]:  # fmt: skip
        with pytest.raises(ProbqError, match=message):
            model(wrong)
    for integers, message in [(np.full((1, 3), 8), r"-8 \.\. 7"), (np.zeros((1, 3)), "expected integers")]:
        with pytest.raises(ProbqError, match=message):
            model.run(integers)


# Files that cannot be loaded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    small().save(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def refused(path: Path, message: str | None = None) -> None:
    with pytest.raises(ProbqError, match=message) as caught:
        IntegerModel.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_truncated(path: Path) -> None:
    whole = path.read_bytes()
    for length in [*range(0, 24), *range(24, len(whole), 37), *range(len(whole) - 20, len(whole))]:
        path.write_bytes(whole[:length])
        refused(path)
    path.write_bytes(whole + b"\0")
    refused(path)


def test_flipped(path: Path) -> None:
    """Every byte of the file matters: header, manifest, hash and blobs."""
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    positions = {*range(40), *rng.integers(0, len(whole), 500).tolist(), *range(len(whole) - 40, len(whole))}
    for position in positions:
        for mask in (1, 2 ** int(rng.integers(1, 8)), 255):
            damaged = bytearray(whole)
            damaged[position] ^= mask
            path.write_bytes(damaged)
            refused(path)


def test_not_a_file_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "m"
    refused(path, "there is no file")
    refused(tmp_path, "is a folder")
    rng = np.random.default_rng(0)
    for content in (b"", b"\0" * 8, b"\xff" * 64, b"PK\x03\x04" + rng.bytes(500), *map(rng.bytes, range(1, 200, 7))):
        path.write_bytes(content)
        refused(path)
    safetensors.numpy.save_file({"w": np.zeros(3)}, path)
    refused(path, "probq did not write it")
    for manifest, message in [
        ('{"format": "probq.posterior"}', r"posterior.*probq\.load"),
        ('{"format": "other"}', "format is 'other'"),
        ('{"format": "probq.integer", "version": 2}', "update probq"),
        ("[]", "format is None"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("NaN", "not JSON"),
        ("1" * 5000, "not JSON"),
    ]:
        safetensors.numpy.save_file({"w": np.zeros(3)}, path, {"probq": manifest})
        refused(path, message)


def test_edited_manifest(path: Path) -> None:
    blobs, manifest = contents(path)
    text = json.dumps(manifest | {"output_scale": 1.0})
    old = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    for metadata in ({"probq": text}, {"probq": text, "probq.sha256": old}, {"probq": text, "probq.sha256": ""}):
        safetensors.numpy.save_file(blobs, path, metadata)
        refused(path, "edited or damaged")


def contents(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with safetensors.safe_open(path, framework="numpy") as file:
        manifest = json.loads(file.metadata()["probq"])
    return safetensors.numpy.load_file(path), manifest


def forge(path: Path, blobs: dict[str, np.ndarray], manifest: Any) -> None:
    """A file of someone who knows the format, with right hashes."""
    for node in manifest.get("nodes") or []:
        for name, entry in (node.get("tensors") or {}).items() if isinstance(node, dict) else []:
            key = f"{node.get('name')}/{name}"
            if isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and key in blobs:
                entry["sha256"] = hashlib.sha256(blobs[key].tobytes()).hexdigest()
    text = json.dumps(manifest)
    metadata = {"probq": text, "probq.sha256": hashlib.sha256(text.encode()).hexdigest()}
    safetensors.numpy.save_file(blobs, path, metadata)


def test_a_forged_file_that_is_right_is_loaded(path: Path) -> None:
    forge(path, *contents(path))
    assert IntegerModel.load(path).sha256() == small().sha256()


WEIGHT = ("nodes", 1, "tensors", "weight")
BIAS = ("nodes", 2, "tensors", "bias")
EDITS: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "no nodes": (("nodes",), [], "does not mention"),
    "nodes": (("nodes",), {}, "nodes must be of type list"),
    "node": (("nodes", 1), [], "node 1 of the manifest must hold exactly"),
    "field": (("extra",), 1, "must hold exactly"),
    "version": (("version",), True, "must be of type int"),
    "scale": (("output_scale",), -1.0, "positive finite"),
    "scale type": (("output_scale",), "1", "must be of type float"),
    "output": (("output",), "y", "not a node"),
    "metadata": (("metadata",), [], "metadata must be of type dict"),
    "operation": (("nodes", 4, "op"), "eval", "unknown operation 'eval'"),
    "name": (("nodes", 4, "name"), "../sum", "without a slash"),
    "repeated name": (("nodes", 4, "name"), "a", "two nodes"),
    "later input": (("nodes", 1, "inputs"), ["sum"], "not an earlier node"),
    "inputs that are no names": (("nodes", 1, "inputs"), [["x"]], "inputs must be names"),
    "bound": (("nodes", 1, "bound"), 2**60, r"2\^53"),
    "huge bound": (("nodes", 1, "bound"), 10**3000, r"2\^53"),
    "attribute": (("nodes", 0, "attributes", "lo"), "0", "lo must be an integer"),
    "unknown attribute": (("nodes", 0, "attributes", "code"), "import os", "unknown attribute"),
    "second input": (("nodes", 4), None, "node 4"),
    "missing tensor": (("nodes", 2, "tensors"), {}, "does not mention"),
    "tensor": (WEIGHT, [], "must hold exactly"),
    "negative shape": ((*WEIGHT, "shape"), [-4, 3], "not a shape"),
    "float shape": ((*WEIGHT, "shape"), [4.0, 3], "not a shape"),
    "huge shape": ((*WEIGHT, "shape"), [2**40, 3], "at most"),
    "huge empty shape": ((*WEIGHT, "shape"), [2**31, 2**31, 0], "at most"),
    "axes": ((*WEIGHT, "shape"), [1] * 33, "not a shape"),
    "longer shape": ((*WEIGHT, "shape"), [4, 300], "bytes where"),
    "other shape": ((*WEIGHT, "shape"), [3, 4], "do not broadcast"),
    "no codebook": ((*WEIGHT, "codebooks"), [], "tensor a/weight"),
    "codebook": ((*WEIGHT, "codebooks", 0), 3, "a codebook must hold exactly"),
    "empty codebook": ((*WEIGHT, "codebooks", 0, "count"), 0, "at least one level"),
    "descending codebook": ((*WEIGHT, "codebooks", 0, "step"), -1, "ascending"),
    "huge codebook": ((*WEIGHT, "codebooks", 0, "count"), 2**80, r"2\^61"),
    "far codebook": ((*WEIGHT, "codebooks", 0, "start"), -(2**62), r"2\^61"),
    "unsorted levels": ((*WEIGHT, "codebooks", 2, "levels"), [0, 0], "ascend"),
    "no levels": ((*WEIGHT, "codebooks", 2, "levels"), [], "at least one level"),
    "levels": ((*WEIGHT, "codebooks", 2, "levels", 0), "-4", "integers within"),
    "bits": ((*WEIGHT, "codebooks", 2, "bits"), 4, "disagree"),
    "sign": ((*WEIGHT, "codebooks", 2, "signed"), False, "disagree"),
    "rung type": ((*WEIGHT, "rung"), "0", "rung must be of type int"),
    "rung beyond": ((*BIAS, "rung"), 1, "between 0 and 0"),
    "rung fields": ((*WEIGHT, "rung", "more"), 1, "its rung must hold exactly"),
    "rung blob": ((*WEIGHT, "rung", "blob"), "a/bias", "own blob"),
    "rung shape": ((*WEIGHT, "rung", "shape"), [4], "do not broadcast"),
    "huge rung shape": ((*WEIGHT, "rung", "shape"), [2**20, 2**11], "bytes where"),
    "rung hash": ((*WEIGHT, "rung", "sha256"), "0", "SHA-256"),
    "hash type": ((*WEIGHT, "sha256"), 1, "must be of type str"),
}


@pytest.mark.parametrize(("where", "value", "message"), EDITS.values(), ids=EDITS)
def test_forged_manifest(path: Path, where: tuple[Any, ...], value: Any, message: str) -> None:
    blobs, manifest = contents(path)
    part: Any = manifest
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    forge(path, blobs, manifest)
    refused(path, message)


def test_every_field_is_needed(path: Path) -> None:
    blobs, manifest = contents(path)
    text = json.dumps(manifest)
    for where in [(), ("nodes", 1), WEIGHT, (*WEIGHT, "rung"), (*WEIGHT, "codebooks", 0), (*WEIGHT, "codebooks", 2)]:
        part: Any = json.loads(text)
        for key in where:
            part = part[key]
        for field in part:
            manifest = json.loads(text)
            part = manifest
            for key in where:
                part = part[key]
            del part[field]
            forge(path, blobs, manifest)
            refused(path)


def test_forged_blobs(path: Path) -> None:
    blobs, manifest = contents(path)
    for changed, message in [
        ({"a/weight": blobs["a/weight"][:-1]}, "bytes where"),
        ({"a/weight": np.append(blobs["a/weight"], np.uint8(0))}, "bytes where"),
        ({"a/weight": blobs["a/weight"] | 0xFF}, "spare bits|no level"),
        ({"a/weight": blobs["a/weight"].astype(np.int32)}, "list of bytes"),
        ({"a/weight": blobs["a/weight"][None]}, "list of bytes"),
        ({"a/weight/rung": blobs["a/weight/rung"] ^ 1}, "SHA-256"),
        ({"more": np.zeros(1, np.uint8)}, "'more', which its manifest does not mention"),
    ]:
        forge(path, blobs | changed, json.loads(json.dumps(manifest)))
        refused(path, message)
    for key in blobs:
        forge(path, {k: v for k, v in blobs.items() if k != key}, manifest)
        refused(path, re.escape(f"'{key}' is missing"))


def test_zero_bits_are_no_way_to_claim_memory(path: Path) -> None:
    """They take none when they are loaded, but do when they are used."""
    blobs, manifest = contents(path)
    tensors = manifest["nodes"][3]["tensors"]
    tensors["weight"]["shape"] = [2**12, 2**12 + 1]
    tensors["bias"]["shape"] = [2**12]
    assert tensors["bias"]["codebooks"][0]["bits"] == 0
    forge(path, blobs, manifest)
    with memory_below(10):
        refused(path, "out of proportion")


def test_shapes_out_of_proportion_to_the_file_are_refused(path: Path) -> None:
    """One row of one bit per weight among very many rows of none."""
    blobs, manifest = contents(path)
    entry = manifest["nodes"][1]["tensors"]["weight"]
    rung = np.zeros((2**14, 1), int)
    rung[0] = 1
    blobs["a/weight/rung"] = pack(rung, Packing((range(3),), np.array(0)))
    blobs["a/weight"] = np.zeros(2**12 // 8, np.uint8)
    entry["rung"] |= {"shape": [2**14, 1], "sha256": hashlib.sha256(blobs["a/weight/rung"].tobytes()).hexdigest()}
    entry["shape"] = [2**14, 2**12]
    forge(path, blobs, manifest)
    with memory_below(10):
        refused(path, "out of proportion")


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    rung = np.zeros((2**13 + 512, 1), int)
    rung[0] = 1
    packing = {"weight": Packing((range(1), range(2)), rung)}
    weight = np.broadcast_to(np.int64(0), (2**13 + 512, 2**11))
    tensors = {"weight": weight, "bias": np.zeros(2**13 + 512, int)}
    x = Node("x", "input", attributes=X | {"shape": [2**11]})
    with pytest.raises(ProbqError, match="remove pruned channels"):
        IntegerModel([x, Node("fc", "linear", ("x",), {}, tensors, packing)], "fc", 1.0).save(tmp_path / "m")
    assert os.listdir(tmp_path) == []
