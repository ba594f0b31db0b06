"""The ONNX file computes the model's integers, however it is run."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integer_models import inputs, models, one_layer
from networks import NETWORKS, PLANS, lowered

import probq
from probq.export.onnx import FAST, run, write
from probq.export.onnx_layers import stored
CERTIFIED = 2**22

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


@given(models(widest=8), st.booleans())
@many
def test_random_models(tmp_path_factory, model, packed):
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    write(model, path, packed)
    assert differing(model, path, inputs(model)) == [0, 0]


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
    (model,), x = lowered(NETWORKS[network], plan)
    write(model, tmp_path / "m.onnx")
    proto, integers = onnx.load(str(tmp_path / "m.onnx")), model.quantize_input(x[:10])
    kind = onnx.helper.tensor_dtype_to_np_dtype(proto.graph.input[0].type.tensor_type.elem_type)
    found = reference.ReferenceEvaluator(proto).run(None, {"input": integers.astype(kind)})[0]
    assert np.array_equal(found, model.run(integers))


@pytest.mark.parametrize("hi", [1, 15, 255])
@pytest.mark.parametrize("lo", [0, -1])
def test_every_accumulator_beside_a_tie_at_the_certificate_limit(lo, hi, tmp_path):
    """The largest shift that is certified: all ties of all codes, and their neighbours."""
    hi = min(hi, 255 + lo)
    shift = (CERTIFIED // (hi - lo + 1)).bit_length() - 1
    edges = np.array([(2 * k + 1) * 2 ** (shift - 1) for k in range(lo - 2, hi + 3)])
    bias = np.concatenate([edges - 1, edges, edges + 1])
    model = one_layer(np.zeros((len(bias), 2), int), bias, shift, hi, lo=lo)
    written = write(model, tmp_path / "m.onnx")
    assert written.forms["fc"] == FAST
    assert differing(model, tmp_path / "m.onnx", np.zeros((1, 2), int)) == [0, 0]


def test_beyond_the_certificate_a_layer_takes_the_integer_form_and_says_so(tmp_path):
    written = write(one_layer([[3, -5]], [7], 15, 255), tmp_path / "m.onnx")
    assert "exceeds 2^22" in written.forms["fc"]
    assert "exceeds 2^22" in str(written)
    assert written.size == (tmp_path / "m.onnx").stat().st_size


@pytest.mark.parametrize("value", [-128, -127, 127])
def test_products_that_saturate_without_vnni_are_stored_unsigned(value, tmp_path):
    """u8 x s8 products are summed in pairs in 16 bits: 2 * 255 * 127 does not fit."""
    model = one_layer(np.full((4, 64), value), np.zeros(4, int), 14, 255)
    write(model, tmp_path / "m.onnx")
    graph = onnx.load(str(tmp_path / "m.onnx")).graph
    weights = [t for t in graph.initializer if np.prod(t.dims) == 256]
    assert [t.data_type for t in weights] == [onnx.TensorProto.UINT8]
    assert differing(model, tmp_path / "m.onnx", inputs(model)) == [0, 0]


def test_how_weights_are_stored():
    assert stored(np.array([-64, 64]), 255) == ("int8", 0)
    assert stored(np.array([-65]), 255) == ("uint8", 128)
    assert stored(np.array([-128, 127]), 127) == ("int8", 0)
    assert stored(np.array([0, 255]), 1) == ("uint8", 0)
    assert stored(np.array([-200, 50]), 1) == ("uint8", 200)
    assert stored(np.array([-200, 56]), 1) is None


@pytest.mark.parametrize("op", ["ConvInteger", "MatMulInteger", "QLinearConv"])
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
