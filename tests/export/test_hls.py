"""hls4ml's C++ emulation computes the model's integers; needs the extra "hls" and g++."""

import shutil
import sys

import numpy as np
import pytest
from integer_models import inputs, one_layer
from networks import NETWORKS, SHIFTING, lowered

import probq
from probq import export
from probq.export.hls import run, write
from probq.export.hls.rewrite import rewritten
from probq.integer import IntegerModel, Node


@pytest.fixture
def tools():
    pytest.importorskip("hls4ml")
    if shutil.which("g++") is None:
        pytest.skip("needs g++")


# hls4ml and qonnx warn of what they could not simplify; whether the integers agree is what is tested
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
BINARY = {"lo": 0, "hi": 1, "start": -1, "step": 2}


def image(shape, lo=0, hi=15):
    return Node("x", "input", attributes={"shape": shape, "scale": 0.125, "lo": lo, "hi": hi})


def layer(name, source, weight, seed=0, **attributes):
    weight = np.asarray(weight)
    bias = np.random.default_rng(seed).integers(-30, 30, len(weight))
    if weight.ndim == 2:
        return Node(name, "linear", (source,), {}, {"weight": weight, "bias": bias})
    spatial = weight.ndim - 2
    geometry = {"stride": [1] * spatial, "padding": [[0, 0]] * spatial, "dilation": [1] * spatial, "groups": 1}
    attributes = geometry | {"transposed": False} | attributes
    return Node(name, "conv", (source,), attributes, {"weight": weight, "bias": bias})


def requantize(name, source, shift, limits):
    """By a shift, rounding half up; `shift` is one number or has one for each channel."""
    shift = np.asarray(shift)
    numbers = {"multiplier": np.ones_like(shift), "add": np.left_shift(1, np.maximum(shift, 1) - 1), "shift": shift}
    return Node(name, "requantize", (source,), limits, numbers)


def pool(name, source, kernel=2, **changes):
    window = {"kernel": [kernel] * 2, "stride": [kernel] * 2, "padding": [[0, 0]] * 2, "dilation": [1, 1]}
    return Node(name, "max_pool", (source,), window | {"ceil_mode": False} | changes)


def model(*nodes):
    return IntegerModel(nodes, nodes[-1].name, 0.25)


def weights(*shape, low=-8, high=8):
    return np.random.default_rng(len(shape)).integers(low, high, shape)


def signs(*shape):
    return np.random.default_rng(0).choice([-1, 1], shape)


def unsigned(bits):
    return {"lo": 0, "hi": 2**bits - 1}


def lenet():
    """LeNet's operations on images of 16 x 16; the flattened image is not one pixel."""
    return model(
        image([1, 16, 16], 0, 255), layer("c1", "x", weights(4, 1, 3, 3)), requantize("q1", "c1", 6, unsigned(4)),
        pool("p1", "q1"), layer("c2", "p1", weights(5, 4, 3, 3, low=-2, high=2)),
        requantize("q2", "c2", 4, unsigned(4)), pool("p2", "q2"), Node("f", "reshape", ("p2",), {"shape": [20]}),
        layer("fc", "f", weights(16, 20, low=-128, high=128)), requantize("q3", "fc", 6, unsigned(8)),
        layer("out", "q3", weights(10, 16, low=-128, high=128)),
    )  # fmt: skip


def per_channel():
    """Scales of their own for hidden channels and for outputs (trap 4)."""
    hidden = requantize("q", "fc", np.arange(6), unsigned(4))
    factors = {"multiplier": np.array([1, 4, 2, 1])}
    return model(
        image([5]), layer("fc", "x", weights(6, 5)), hidden, layer("out", "q", weights(4, 6)),
        Node("common", "multiply", ("out",), {}, factors),
    )  # fmt: skip


def binary():
    """One-bit weights (trap 4)."""
    return model(
        image([5]), layer("a", "x", signs(16, 5)), requantize("q", "a", 2, unsigned(3)), layer("b", "q", signs(16, 16)),
        requantize("r", "b", 2, {"lo": -4, "hi": 3}), layer("out", "r", signs(4, 16)),
    )  # fmt: skip


def signed():
    """Signed inputs and hidden values, padding that differs from side to side, steps of two."""
    return model(
        image([2, 7, 6], -8, 7), layer("c", "x", weights(3, 2, 3, 2), padding=[[1, 0], [0, 1]], stride=[2, 1]),
        requantize("q", "c", np.array([2, 3, 4]).reshape(3, 1, 1), {"lo": -8, "hi": 7}),
        Node("f", "reshape", ("q",), {"shape": [54]}), layer("out", "f", weights(4, 54)),
    )  # fmt: skip


def one_dimensional():
    return model(
        image([2, 9]), layer("c", "x", weights(4, 2, 3), padding=[[1, 1]]), requantize("q", "c", 4, unsigned(4)),
        Node("f", "reshape", ("q",), {"shape": [36]}), layer("out", "f", weights(4, 36)),
    )  # fmt: skip


MODELS = {"lenet": lenet, "per channel": per_channel, "binary": binary, "signed": signed, "1-d": one_dimensional}


@pytest.mark.slow
@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_no_output_differs(make, tmp_path):
    network = make()
    write(network, tmp_path / "m")
    x = inputs(network, 60)
    np.testing.assert_array_equal(run(tmp_path / "m", x), network.run(x))


@pytest.mark.slow
@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize("plan", ["one scale", "channel"])
def test_a_lowered_network_does_not_differ(plan, tmp_path):
    (network,), x = lowered(NETWORKS["signed mlp"], SHIFTING[plan])
    write(network, tmp_path / "m", strategy="Latency", name="other")
    assert (tmp_path / "m" / "firmware" / "other.cpp").is_file()
    report = export.verify(network, tmp_path / "m", x)
    assert (report.target, report.compared, report.differing) == ("hls", len(x), 0)
    assert export.certify(network, tmp_path / "m", report).is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("tools")
def test_every_accumulator_beside_a_tie(tmp_path):
    edges = np.array([(2 * k + 1) * 2**5 for k in range(-3, 18)])
    bias = np.concatenate([edges - 1, edges, edges + 1])
    network = one_layer(np.ones((len(bias), 1), int), bias, 6, 15, bits=2)
    write(network, tmp_path / "m")
    x = np.arange(4)[:, None]
    np.testing.assert_array_equal(run(tmp_path / "m", x), network.run(x))


@pytest.mark.usefixtures("tools")
def test_the_project_appears_alone_and_names_no_temporary_folder(tmp_path):
    write(one_layer([[3]], [0], 1, 7), tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    texts = [path.read_text() for path in (tmp_path / "m").iterdir() if path.is_file()]
    assert not any(".m" + end in text for text in texts for end in ("\n", "/"))


@pytest.mark.usefixtures("tools")
def test_a_missing_compiler_is_named(monkeypatch, tmp_path):
    write(one_layer([[3]], [0], 1, 7), tmp_path / "m")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(probq.ProbqError, match=r"g\+\+ is not on the PATH"):
        run(tmp_path / "m", [[1]])


def test_factors_of_channels_become_wider_weights():
    network = per_channel()
    found = rewritten(network)
    assert [node.op for node in found.nodes] == ["input", "linear", "requantize", "linear"]
    x = inputs(network)
    np.testing.assert_array_equal(found.run(x), network.run(x))


REFUSED = {
    "2 groups": [image([2, 6, 6]), layer("c", "x", weights(2, 1, 3, 3), groups=2)],
    "the dilation": [image([2, 6, 6]), layer("c", "x", weights(2, 2, 3, 3), dilation=[2, 2])],
    "transposed": [image([2, 6, 6]), layer("c", "x", weights(2, 2, 3, 3), transposed=True)],
    "overlap": [image([2, 7, 7]), pool("p", "x", 3, stride=[2, 2])],
    "has padding": [image([2, 8, 8]), pool("p", "x", padding=[[1, 1]] * 2)],
    "partial": [image([2, 7, 7]), pool("p", "x", ceil_mode=True)],
    "clips to 0 .. 11": [image([5]), layer("a", "x", weights(4, 5)), requantize("q", "a", 2, {"lo": 0, "hi": 11})],
    "leaves nothing": [image([5]), layer("a", "x", weights(4, 5)), requantize("q", "a", 14, unsigned(4))],
    "only a ReLU": [image([5]), layer("a", "x", weights(4, 5)), Node("r", "clip", ("a",), {"lo": 0, "hi": 37})],
    "of binary values": [image([5]), layer("a", "x", weights(4, 5)), requantize("q", "a", 2, BINARY)],
    "is an image": [image([2, 6, 6]), layer("c", "x", weights(2, 2, 3, 3))],
    "sum has no HLS form": [image([2, 6, 6]), Node("s", "sum", ("x",), {"axes": [1, 2], "keepdims": False})],
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_hls4ml_computes_otherwise_is_refused(why, tmp_path):
    with pytest.raises(probq.ProbqError, match=why):
        write(model(*REFUSED[why]), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "hls4ml", None)
    with pytest.raises(probq.ProbqError, match=r'pip install "probq\[hls\]"'):
        write(one_layer([[1]], [0], 1, 3), tmp_path / "m")


def test_an_unknown_strategy_is_refused(tmp_path):
    with pytest.raises(probq.ProbqError, match="'Resource' or 'Latency'"):
        write(one_layer([[1]], [0], 1, 3), tmp_path / "m", strategy="fast")
