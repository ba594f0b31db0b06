"""The ONNX file computes the model's integers, however it is run."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integer_models import inputs, limits, models, one_layer, requantizations, shape_of, tensors
from networks import NETWORKS, PLANS, lowered
from random_models import inputs as random_inputs
from random_models import seeded
from torch import nn

import probq
from probq import IntegerModel
from probq.codebooks import ladder
from probq.export.onnx.layers import stored
from probq.export.onnx.writer import FAST, run, write
from probq.integer import Node

pytestmark = pytest.mark.filterwarnings("ignore:the posterior was never fitted")  # any draw will do here

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
reference = pytest.importorskip("onnx.reference")

many = settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)


def differing(model, path, integers):
    expected = model.run(integers)
    return [int((run(path, integers, optimize) != expected).sum()) for optimize in (False, True)]


@pytest.mark.filterwarnings("ignore:.*has negative values")
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_no_output_differs(network, plan, packed, tmp_path):
    lowered_models, x = lowered(network, plan, draws=1)
    for model in lowered_models:
        write(model, tmp_path / "m.onnx", packed)
        assert differing(model, tmp_path / "m.onnx", model.quantize_input(x)) == [0, 0]


@given(models(widest=8, moves=True), st.booleans())
@many
def test_random_models(tmp_path_factory, model, packed):
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    write(model, path, packed)
    assert differing(model, path, inputs(model)) == [0, 0]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_random_models_of_every_operation(packed, tmp_path):
    """Widths up to 16 bits, three spatial axes, numbers for every element; only what passes 63 bits is refused."""
    written = 0
    for seed in range(100):
        model = seeded(seed)
        try:
            write(model, tmp_path / "m.onnx", packed)
        except probq.ProbqError as error:
            assert "63 bits" in str(error)  # noqa: PT017
            continue
        written += 1
        assert differing(model, tmp_path / "m.onnx", random_inputs(model, 8)) == [0, 0], seed
    assert written > 90


@pytest.mark.parametrize(("lo", "hi"), [(None, -84), (-151, -35), (300, None), (256, 2**31 - 1), (-(2**31), 0)])
def test_a_clip_to_integers_that_its_input_has_not(lo, hi, tmp_path):
    clip = Node("c", "clip", ("x",), {"lo": lo, "hi": hi})
    model = IntegerModel([four(0, 255), clip], "c", 1.0)
    write(model, tmp_path / "m.onnx")
    assert differing(model, tmp_path / "m.onnx", np.array([[0, 1, 254, 255]])) == [0, 0]


@pytest.mark.parametrize(("lo", "hi"), [(-300, -300), (-301, -299), (-65_536, -65_535), (256, 257), (-300, 1)])
def test_a_layer_on_a_narrow_range_far_from_zero(lo, hi, tmp_path):
    tensors = {"weight": np.array([[1, -2, 3, 127], [300, 0, -7, 5]]), "bias": np.array([9, -9])}
    model = IntegerModel([four(lo, hi), Node("fc", "linear", ("x",), {}, tensors)], "fc", 1.0)
    write(model, tmp_path / "m.onnx")
    assert differing(model, tmp_path / "m.onnx", np.array([[lo, hi, lo, hi], [hi] * 4, [lo] * 4])) == [0, 0]


def four(lo, hi, shape=(4,)):
    return Node("x", "input", attributes={"shape": list(shape), "scale": 1.0, "lo": lo, "hi": hi})


@given(models(widest=12, limit=2**40))
@settings(many, max_examples=60)
def test_random_models_beyond_8_bits_and_31_bits(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    write(model, path)
    assert differing(model, path, inputs(model)) == [0, 0]


@pytest.mark.filterwarnings("ignore:.*has negative values")
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("network", ["residual", "branches", "signed mlp"])  # the reference's 1-d and 3-d have bugs
def test_onnx_reference_agrees(network, plan, tmp_path):
    (model, _), x = lowered(NETWORKS[network], plan, draws=1)
    write(model, tmp_path / "m.onnx")
    proto, integers = onnx.load(str(tmp_path / "m.onnx")), model.quantize_input(x[:10])
    kind = onnx.helper.tensor_dtype_to_np_dtype(proto.graph.input[0].type.tensor_type.elem_type)
    found = reference.ReferenceEvaluator(proto).run(None, {"input": integers.astype(kind)})[0]
    assert np.array_equal(found, model.run(integers))


@pytest.mark.parametrize("multiplier", [1, 3, 77, 128, 255])
@pytest.mark.parametrize("hi", [1, 15, 255])
@pytest.mark.parametrize("lo", [0, -1])
def test_every_accumulator_beside_a_level(lo, hi, multiplier, tmp_path):
    """All accumulators where a code starts, and their neighbours, with a shift that leaves few bits of float32."""
    hi = min(hi, 255 + lo)
    shift = (2**22 // (hi - lo + 1)).bit_length() - 1
    starts = [-(-(2**shift * k - 2 ** (shift - 1)) // multiplier) for k in range(lo - 2, hi + 3)]
    bias = np.array([start + near for start in starts for near in (-1, 0, 1)])
    model = one_layer(np.zeros((len(bias), 2), int), bias, shift, hi, lo=lo, multiplier=multiplier)
    write(model, tmp_path / "m.onnx")
    assert differing(model, tmp_path / "m.onnx", np.zeros((1, 2), int)) == [0, 0]


@pytest.mark.parametrize("multiplier", [1, 3, 77, 128, 255])
def test_integer_multipliers_take_the_fast_form(multiplier, tmp_path):
    weight = np.random.default_rng(0).integers(-128, 128, (20, 30))
    model = one_layer(weight, np.arange(20), 14, 255, multiplier=multiplier)
    assert write(model, tmp_path / "m.onnx").forms["fc"] == FAST
    assert differing(model, tmp_path / "m.onnx", inputs(model)) == [0, 0]


def test_where_float32_rounds_otherwise_a_layer_takes_the_integer_form_and_says_so(tmp_path):
    """Accumulators beyond 2^24, of which float32 holds every second only."""
    model = one_layer(np.full((1, 1200), 127), [1], 17, 255)
    written = write(model, tmp_path / "m.onnx")
    assert "of output 0 starts at another accumulator" in written.forms["fc"]
    assert "of output 0 starts at another accumulator" in str(written)
    assert written.size == (tmp_path / "m.onnx").stat().st_size
    assert differing(model, tmp_path / "m.onnx", inputs(model)) == [0, 0]


@st.composite
def pooled_firsts(draw):
    """A convolution of a few channels and a maximum over windows that lie side by side."""
    channels = draw(st.sampled_from([1, 1, 2, 3, 5]))
    lo, hi = limits(draw(st.integers(1, 8)), draw(st.booleans()))
    pair = lambda lo, hi: [draw(st.integers(lo, hi)) for _ in "hw"]  # noqa: E731
    nodes = [Node("x", "input", attributes={"shape": [channels, *pair(7, 15)], "scale": 0.5, "lo": lo, "hi": hi})]
    padding, window = [pair(0, 2), pair(0, 2)], pair(1, 3)
    spec = {"stride": pair(1, 2), "padding": padding, "dilation": [1, 1], "groups": 1, "transposed": False}
    weight, bias = draw(tensors((2, channels, *pair(1, 4)))), draw(tensors((2,)))
    nodes.append(Node("conv", "conv", ("x",), spec, {"weight": weight, "bias": bias}))
    nodes.append(draw(requantizations("q", "conv", 2, 3)))
    spec = {"kernel": window, "stride": window, "padding": [[0, 0]] * 2, "dilation": [1, 1], "ceil_mode": False}
    nodes.append(Node("pool", "max_pool", ("q",), spec))
    nodes.append(Node("flat", "reshape", ("pool",), {"shape": [int(np.prod(shape_of(nodes)))]}))
    weight = draw(tensors((3, shape_of(nodes)[0])))
    nodes.append(Node("fc", "linear", ("flat",), tensors={"weight": weight, "bias": draw(tensors((3,)))}))
    nodes.append(draw(requantizations("codes", "fc", 3, 1, linear=True)))
    return IntegerModel(nodes, draw(st.sampled_from(["codes", "fc", "pool"])), 1.0)


@given(pooled_firsts(), st.booleans())
@settings(many, max_examples=60)
def test_a_first_convolution_with_its_pooling(tmp_path_factory, model, packed):
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    write(model, path, packed)
    assert differing(model, path, inputs(model)) == [0, 0]


@pytest.mark.parametrize(("channels", "transpositions"), [(1, 2), (3, 1)])
def test_nothing_is_rearranged_between_layers(channels, transpositions, tmp_path):
    """ONNX Runtime removes all transpositions but the image's into blocks, and its own of the image."""
    import onnxruntime

    net = nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, 3),
    )  # fmt: skip
    x = torch.rand(9, channels, 12, 12)
    model = probq.lower(probq.quantize(net, x, plan=probq.Plan(weight=ladder(4), input=ladder(4, signed=False))))
    assert list(write(model, tmp_path / "m.onnx").forms.values())[:3] == [FAST] * 3
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node]
    assert ops.count("Transpose") <= transpositions
    assert ops.index("Clip") > ops.index("NhwcMaxPool")
    assert differing(model, tmp_path / "m.onnx", model.quantize_input(x)) == [0, 0]


@pytest.mark.parametrize("value", [-128, -127, 127])
def test_products_that_saturate_without_vnni_have_unsigned_weights_there(value, tmp_path):
    """u8 x s8 products are summed in pairs in 16 bits: 2 * 255 * 127 does not fit. Files tell which processor it is."""
    model = one_layer(np.full((4, 64), value), np.zeros(4, int), 14, 255)
    write(model, tmp_path / "m.onnx")
    proto = onnx.load(str(tmp_path / "m.onnx"))
    weights = [t for t in proto.graph.initializer if np.prod(t.dims) == 256]
    assert [t.data_type for t in weights] == [onnx.TensorProto.INT8]
    assert differing(model, tmp_path / "m.onnx", inputs(model)) == [0, 0]
    told = next(node for node in proto.graph.node if node.op_type == "And")  # what it says there: the other way
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(False), told.output[0]))
    proto.graph.node.remove(told)
    onnx.save(proto, str(tmp_path / "m.onnx"))
    assert differing(model, tmp_path / "m.onnx", inputs(model)) == [0, 0]


def test_which_weights_a_processor_takes_is_decided_when_the_file_is_loaded(tmp_path):
    import onnxruntime

    model = one_layer(np.full((4, 64), 127), np.zeros(4, int), 14, 255)
    write(model, tmp_path / "m.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node]
    assert ops.count("QLinearConv") == 1
    assert not {"If", "And", "Equal", "Add"}.intersection(ops)


@pytest.mark.parametrize("bias", [0, 1])
@pytest.mark.parametrize(("kernel", "groups"), [(3, 1), (3, 4), (1, 1), (1, 4)])
def test_convolutions_at_the_last_integer_of_float32(kernel, groups, bias, tmp_path):
    """Sums that reach 2^24 are of float32, one more takes operators of integers; products of matrices always do."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-100, 100, (4, 4 // groups, kernel, kernel))
    weight[2] = 0
    weight.reshape(4, -1)[2, 0] = 128
    spec = {"stride": [1, 1], "padding": [[1, 1]] * 2, "dilation": [1, 1], "groups": groups, "transposed": False}
    tensors = {"weight": weight, "bias": np.array([7, -7, 2**24 - 128 * 255 + bias, 0])}
    model = IntegerModel([four(0, 255, (4, 5, 5)), Node("conv", "conv", ("x",), spec, tensors)], "conv", 1.0)
    write(model, tmp_path / "m.onnx")
    found = {node.op_type for node in onnx.load(str(tmp_path / "m.onnx")).graph.node}
    assert ("Conv" in found) == (bias == 0 and (kernel, groups) != (1, 1))
    x = np.concatenate([np.full((1, 4, 5, 5), 255), rng.integers(0, 256, (3, 4, 5, 5))])
    assert differing(model, tmp_path / "m.onnx", x) == [0, 0]


@pytest.mark.parametrize("most", [2**24 // 20, 2**24 // 20 + 1, 2**31 - 1, 2**53 // 20 + 1])
def test_sums_at_the_last_integers_of_floating_point(most, tmp_path):
    """The sum of 20 numbers next to the largest, all odd, over an image and over its features."""
    spec = {"kernel": [4, 5], "stride": [4, 5], "padding": [[0, 0]] * 2}
    wide = Node("wide", "multiply", ("x",), {}, {"multiplier": np.array(most)})
    pool, total = Node("s", "sum_pool", ("wide",), spec), {"axes": [1, 2], "keepdims": False}
    for node in (pool, Node("s", "sum", ("wide",), total)):
        model = IntegerModel([four(-1, 1, (2, 4, 5)), wide, node], "s", 1.0)
        write(model, tmp_path / "m.onnx")
        x = np.ones((2, 2, 4, 5), int)
        x[1] = np.random.default_rng(0).integers(-1, 2, (2, 4, 5))
        assert differing(model, tmp_path / "m.onnx", x) == [0, 0]


def test_how_weights_are_stored():
    assert stored(np.array([-64, 64]), 255) == ("int8", 0)
    assert stored(np.array([-65]), 255) == ("uint8", 128)
    assert stored(np.array([-128, 127]), 127) == ("int8", 0)
    assert stored(np.array([0, 255]), 1) == ("uint8", 0)
    assert stored(np.array([-200, 50]), 1) == ("uint8", 200)
    assert stored(np.array([-200, 56]), 1) is None


@pytest.mark.parametrize("op", ["Conv", "MatMulInteger", "QLinearConv"])
def test_only_standard_operators_of_opset_13(op, tmp_path):
    model = lowered(NETWORKS["residual"], PLANS["tensor"])[0][0]
    write(model, tmp_path / "m.onnx")
    proto = onnx.load(str(tmp_path / "m.onnx"))
    assert proto.ir_version == 8
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 13)]
    assert {node.domain for node in proto.graph.node} == {""}
    assert op in {node.op_type for node in proto.graph.node}


def test_packed_weights_take_their_own_width(tmp_path):
    rng = np.random.default_rng(0)
    model = one_layer(rng.integers(-1, 2, (300, 400)), np.zeros(300, int), 3, 15)
    plain, packed = (write(model, tmp_path / f"{p}.onnx", p).size for p in (False, True))
    assert plain > 120_000
    bits = sum(node.bits for node in model.nodes if node.name == "fc")
    assert packed < bits / 8 + 90_000 / 8 + 6000  # and the identity behind it at 1 bit
    assert differing(model, tmp_path / "True.onnx", inputs(model)) == [0, 0]


def test_nothing_half_written_is_left(tmp_path):
    model = one_layer([[1]], [0], 1, 3)
    with pytest.raises(probq.ProbqError, match="folder that exists"):
        write(model, tmp_path / "no" / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_integers_beyond_the_input_are_refused(tmp_path):
    write(one_layer([[1]], [0], 1, 3), tmp_path / "m.onnx")
    with pytest.raises(probq.ProbqError, match="leave uint8"):
        run(tmp_path / "m.onnx", np.array([[256]]))


def test_a_missing_library_names_its_extra(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "onnx.helper", None)
    with pytest.raises(probq.ProbqError, match=r'pip install "probq\[onnx\]"'):
        write(one_layer([[1]], [0], 1, 3), tmp_path / "m.onnx")
