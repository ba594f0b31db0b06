"""da4ml's Verilog computes the model's integers in Icarus Verilog; needs the extra "verilog" and iverilog."""

import re
import shutil
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from integer_models import inputs, limits, one_layer, requantizations, tensors
from networks import NETWORKS, SHIFTING, lowered

import probq
from probq import export
from probq.export.verilog import run, write
from probq.integer import IntegerModel, Node


@pytest.fixture
def tools():
    pytest.importorskip("da4ml")
    if shutil.which("iverilog") is None:
        pytest.skip("needs Icarus Verilog")


@st.composite
def perceptrons(draw):
    """Linear layers and requantizations by shifts, for each channel or for all, of up to 7 features."""
    features = draw(st.integers(1, 7))
    lo, hi = limits(draw(st.integers(1, 6)), draw(st.booleans()))
    nodes = [Node("x", "input", attributes={"shape": [features], "scale": 0.5, "lo": lo, "hi": hi})]
    for k in range(draw(st.integers(1, 3))):
        outputs = draw(st.integers(1, 7))
        parts = {"weight": draw(tensors((outputs, features), 6)), "bias": 9 * draw(tensors((outputs,)))}
        nodes.append(Node(f"fc{k}", "linear", (nodes[-1].name,), tensors=parts))
        nodes.append(draw(requantizations(f"q{k}", nodes[-1].name, outputs, 1, True, True, 6)))
        features = outputs
    model = IntegerModel(nodes, draw(st.sampled_from([nodes[-1].name, nodes[-2].name])), 1.0)
    assume(max(found.bound for found in model.ranges.values()) < 2**31)
    return model


@pytest.mark.usefixtures("tools")
@given(perceptrons())
@settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
def test_random_models(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("verilog") / "m"
    try:
        write(model, path)
    except probq.ProbqError as error:
        assert any(why in str(error) for why in ("is 0 for all inputs", "finer"))  # noqa: PT017
        return
    x = inputs(model, 20)
    np.testing.assert_array_equal(run(path, x), model.run(x))


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize("plan", ["one scale", "channel", "narrow", "powers of two"])
def test_a_lowered_network_does_not_differ(plan, tmp_path):
    (model,), x = lowered(NETWORKS["signed mlp"], SHIFTING[plan])
    write(model, tmp_path / "m")
    report = export.verify(model, tmp_path / "m", x)
    assert (report.target, report.compared, report.differing) == ("verilog", len(x), 0)
    assert export.certify(model, tmp_path / "m", report).is_file()


@pytest.mark.usefixtures("tools")
def test_every_accumulator_beside_a_tie(tmp_path):
    edges = np.array([(2 * k + 1) * 2**5 for k in range(-3, 18)])
    bias = np.concatenate([edges - 1, edges, edges + 1])
    weight = np.ones((len(bias), 1), int)
    model = one_layer(weight, bias, 6, 15, bits=2)
    write(model, tmp_path / "m")
    x = np.arange(4)[:, None]
    np.testing.assert_array_equal(run(tmp_path / "m", x), model.run(x))


@pytest.mark.usefixtures("tools")
def test_two_modules_in_one_design(tmp_path):
    """Both are read together, as by a tool that makes one chip of them; each is still called by its own name."""
    models = {"first": one_layer([[3]], [0], 1, 7), "second": one_layer([[-5]], [2], 1, 7)}
    for name, model in models.items():
        write(model, tmp_path / name, name=name)
    for name, model in models.items():
        x = np.arange(-3, 4)[:, None].clip(*(model.input.attributes[end] for end in ("lo", "hi")))
        np.testing.assert_array_equal(run(tmp_path / name, x), model.run(x))
    texts = [(tmp_path / name / "src" / f"{name}.v").read_text() for name in models]
    found = [set(re.findall(r"^module (\w+)", text, flags=re.MULTILINE)) for text in texts]
    assert found == [{"first"}, {"second"}]
    with pytest.raises(probq.ProbqError, match="letters, digits and underscores"):
        write(models["first"], tmp_path / "third", name="a b")
    index = tmp_path / "first" / "probq.json"
    index.write_text(index.read_text().replace('"first"', '"../first"'))
    with pytest.raises(probq.ProbqError, match="letters, digits and underscores"):
        run(tmp_path / "first", np.zeros((1, 1), int))


@pytest.mark.usefixtures("tools")
def test_another_models_folder_differs(tmp_path):
    write(one_layer([[3]], [0], 1, 7), tmp_path / "m")
    assert not export.verify(one_layer([[1]], [0], 1, 7), tmp_path / "m", np.arange(5.0)[:, None])


@pytest.mark.usefixtures("tools")
def test_no_input_gives_no_output(tmp_path):
    write(one_layer([[3]], [0], 1, 7), tmp_path / "m")
    assert run(tmp_path / "m", np.zeros((0, 1), int)).shape == (0, 1)


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize("x", [np.zeros((1, 3), int), np.full((1, 1), 256), np.zeros((1, 1))])
def test_integers_that_do_not_fit_are_refused(x, tmp_path):
    write(one_layer([[3]], [0], 1, 7), tmp_path / "m")
    with pytest.raises(probq.ProbqError, match=r"expected integers|leave the range"):
        run(tmp_path / "m", x)


@pytest.mark.usefixtures("tools")
def test_a_missing_simulator_is_named(monkeypatch, tmp_path):
    write(one_layer([[3]], [0], 1, 7), tmp_path / "m")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(probq.ProbqError, match=r"iverilog is not on the PATH; install Icarus Verilog"):
        run(tmp_path / "m", [[1]])


def test_a_model_that_is_too_large_is_refused(tmp_path):
    model = one_layer(np.ones((200, 100), int), np.zeros(200, int), 6, 15)
    with pytest.raises(probq.ProbqError, match=r"unrolls to 60,000 multiplications, more than the 16,384"):
        write(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_an_accumulator_beyond_31_bits_is_refused(tmp_path):
    with pytest.raises(probq.ProbqError, match=r"node fc may reach 255,000,000,000, .* \(31 bits"):
        write(one_layer([[10**9]], [0], 6, 15), tmp_path / "m")


def test_other_operations_are_refused_by_name(tmp_path):
    (model,), _ = lowered(NETWORKS["residual"], SHIFTING["one scale"])
    with pytest.raises(probq.ProbqError, match="conv has no Verilog form"):
        write(model, tmp_path / "m")


def test_a_multiplier_that_is_no_power_of_two_is_refused(tmp_path):
    pytest.importorskip("da4ml")
    nodes = list(one_layer([[1]], [0], 3, 3).nodes)
    numbers = nodes[2].tensors | {"multiplier": np.array(5)}
    nodes[2] = Node("q", "requantize", ("fc",), nodes[2].attributes, numbers)
    with pytest.raises(probq.ProbqError, match=r'node q .*no power of two.*with Plan\(profile="shift"\), or'):
        write(IntegerModel(nodes, "out", 1.0), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "da4ml", None)
    with pytest.raises(probq.ProbqError, match=r'pip install "probq\[verilog\]"'):
        write(one_layer([[1]], [0], 1, 3), tmp_path / "m")
