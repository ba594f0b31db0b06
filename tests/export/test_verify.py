"""`verify` counts what differs, and the certificate says what was verified."""

import hashlib
import json

import numpy as np
import pytest
import torch
from networks import NETWORKS, PLANS, lowered
from torch import nn

import probq
from probq import export

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


class LeNet(nn.Sequential):
    """LeNet-5 as in Caffe: 430,500 weights."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
        )  # fmt: skip


@pytest.fixture(scope="module")
def lenet():
    """4/2/8/8-bit weights and 4/4/8-bit inputs, and 500 images."""
    torch.manual_seed(0)
    weights, inputs = {"0": 4, "3": 2, "7": 8, "9": 8}, {"3": 4, "7": 4, "9": 8}

    def plan(layer):
        book = probq.codebooks.ladder
        own = {"weight": book(weights[layer.name]), "input": book(inputs.get(layer.name, 8), signed=False)}
        return probq.Plan(**own, profile="shift")

    q = probq.quantize(LeNet().eval(), torch.rand(32, 1, 28, 28), plan=plan)
    return probq.lower(q), torch.rand(500, 1, 28, 28).numpy()


def test_lenet_does_not_differ(lenet, tmp_path):
    model, x = lenet
    for packed in (False, True):
        written = export.onnx.write(model, tmp_path / "m.onnx", packed)
        report = export.verify(model, tmp_path / "m.onnx", x)
        assert report
        assert (report.target, report.compared, report.differing) == ("onnx", 500, 0)
        assert list(written.forms.values()).count("QLinearConv") == 3
    bits = sum(node.bits for node in model.nodes)
    assert written.size <= 1.03 * bits / 8


def test_lenet_does_not_differ_in_qonnx(lenet, tmp_path):
    pytest.importorskip("qonnx")
    model, x = lenet
    for flavour in ("hls4ml", "finn"):
        export.qonnx.write(model, tmp_path / "m.onnx", flavour)
        report = export.verify(model, tmp_path / "m.onnx", x[:100])
        assert (report.target, report.compared, report.differing) == ("qonnx", 100, 0)


@pytest.fixture
def mlp(tmp_path):
    (model,), x = lowered(NETWORKS["signed mlp"], PLANS["one scale"])
    export.onnx.write(model, tmp_path / "m.onnx")
    return model, x, tmp_path / "m.onnx"


def test_a_changed_artefact_is_found(mlp):
    model, x, path = mlp
    proto = onnx.load(str(path))
    biases = proto.graph.initializer[-1]
    assert biases.data_type == onnx.TensorProto.INT32
    biases.raw_data = bytes(len(biases.raw_data))
    onnx.save(proto, str(path))
    report = export.verify(model, path, x)
    assert not report
    assert 0 < report.differing <= report.compared == len(x)
    assert f"{report.differing} of {len(x)} outputs differ" in str(report)


def test_an_input_differs_once_however_many_of_its_integers_do(mlp):
    _, x, path = mlp
    other = lowered(NETWORKS["signed mlp"], PLANS["narrow"])[0][0]
    assert export.verify(other, path, x).differing <= len(x)


def test_nothing_compared_is_no_proof(mlp):
    model, x, path = mlp
    report = export.verify(model, path, x[:0])
    assert report.compared == 0
    assert not report


def test_another_models_artefact_is_refused_where_shapes_differ(mlp):
    _, _, path = mlp
    model = lowered(NETWORKS["branches"], PLANS["one scale"])[0][0]
    with pytest.raises(probq.ProbqError, match=r"cannot run|another model"):
        export.verify(model, path, np.zeros((2, 6)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.onnx", b"no protobuf \xff", "is not an ONNX file|cannot load"),
        ("m.bin", b"", "of no known target"),
        ("none.onnx", None, "there is no file"),
    ],
)
def test_what_is_no_artefact_is_refused(name, content, message, mlp):
    model, x, path = mlp
    path = path.with_name(name)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(probq.ProbqError, match=message):
        export.verify(model, path, x)


def test_the_certificate_says_what_was_verified(mlp):
    model, x, path = mlp
    report = export.verify(model, path, x)
    beside = export.certify(model, path, report)
    assert beside == path.with_name("m.onnx.json")
    found = json.loads(beside.read_text())
    assert found["model_sha256"] == model.sha256()
    assert found["artefact_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found["target"], found["compared"], found["differing"]) == ("onnx", len(x), 0)
    assert found["bytes"] == path.stat().st_size
    assert found["bits"] == sum(node.bits for node in model.nodes)
    assert found["bops"] == model.metadata["bops"]
    assert set(found["accumulators"]) == {"0", "3", "4"}
    for node in model.nodes:
        if node.name in found["accumulators"]:
            assert found["accumulators"][node.name]["bound"] <= node.bound
    assert "onnxruntime" in found["versions"]


def test_a_certificate_needs_an_artefact(mlp):
    model, x, path = mlp
    report = export.verify(model, path, x)
    with pytest.raises(probq.ProbqError, match="there is no file"):
        export.certify(model, path.with_name("none.onnx"), report)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_ranges_hold_and_are_no_wider_than_lowerings(network):
    (model,), x = lowered(network, PLANS["tensor"])
    found, integers = model.ranges, model.quantize_input(x)
    for node, values in zip(model.nodes, model.values(integers).values(), strict=True):
        assert found[node.name].low <= values.min()
        assert values.max() <= found[node.name].high
        assert found[node.name].shape == values.shape[1:]
