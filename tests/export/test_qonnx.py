"""The QONNX file computes the model's integers in qonnx's own executor, in both flavours."""

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from integer_models import inputs, models, one_layer
from networks import NETWORKS, PLANS, SHIFTING, lowered
from torch import nn

import probq
from probq.codebooks import ladder
from probq.export.qonnx import run, write
from probq.export.qonnx.graph import Width, width
from probq.integer import Node
from probq.testing import lenet5

onnx = pytest.importorskip("onnx")
pytest.importorskip("qonnx")

FLAVOURS = ["hls4ml", "finn"]
CONV = (
    lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.ReLU6(),
        nn.AvgPool2d(2), nn.ConvTranspose2d(8, 4, 3, 3, 1, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 3),
    ),
    lambda n: torch.rand(n, 1, 12, 12),
)  # fmt: skip
NARROW = [plan for plan in SHIFTING if plan != "wide"]
SHIFTS = {"conv": CONV} | {name: NETWORKS[name] for name in ("text", "branches", "signed mlp")}


def differing(model, path, integers):
    return int((run(path, integers) != model.run(integers)).sum())


@pytest.mark.filterwarnings("ignore:.*has negative values")
@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("plan", [SHIFTING[p] for p in NARROW], ids=NARROW)
@pytest.mark.parametrize("network", SHIFTS.values(), ids=SHIFTS)
def test_no_output_differs(network, plan, flavour, tmp_path):
    (model,), x = lowered(network, plan)
    write(model, tmp_path / "m.onnx", flavour)
    assert differing(model, tmp_path / "m.onnx", model.quantize_input(x)) == 0


@pytest.mark.parametrize("plan", ["tensor", "channel"])
def test_integer_multipliers_are_refused_with_the_way_out(plan, tmp_path):
    (model,), _ = lowered(NETWORKS["signed mlp"], PLANS[plan])
    with pytest.raises(probq.ProbqError, match=r'no power of two.*quantize with Plan\(profile="shift"\)'):
        write(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@given(models(widest=5, only_shifts=True, limit=2**22))
@settings(max_examples=80, suppress_health_check=list(HealthCheck), deadline=None)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_random_models(tmp_path_factory, flavour, model):
    path = tmp_path_factory.mktemp("qonnx") / "m.onnx"
    try:
        write(model, path, flavour)
    except probq.ProbqError as error:
        assert any(why in str(error) for why in ("24 bits", "coarser", "finer"))  # noqa: PT017
        return
    assert differing(model, path, inputs(model)) == 0


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_accumulator_beside_a_tie(flavour, tmp_path):
    edges = np.array([(2 * k + 1) * 2**5 for k in range(-3, 18)])
    bias = np.concatenate([edges - 1, edges, edges + 1])
    model = one_layer(np.zeros((len(bias), 2), int), bias, 6, 15)
    write(model, tmp_path / "m.onnx", flavour)
    assert differing(model, tmp_path / "m.onnx", np.zeros((1, 2), int)) == 0


def test_what_each_flavour_asks_for(tmp_path):
    """hls4ml: biases behind Quant, scalar scales; FINN: plain biases. All scalars have 0 dimensions (trap 6)."""
    (model,), _ = lowered(CONV, SHIFTING["channel"])
    for flavour in FLAVOURS:
        write(model, tmp_path / "m.onnx", flavour)
        graph = onnx.load(str(tmp_path / "m.onnx")).graph
        shapes = {t.name: list(t.dims) for t in graph.initializer}
        quants = {node.output[0]: node for node in graph.node if node.op_type in ("Quant", "BipolarQuant")}
        scales = [shapes[node.input[1]] for node in quants.values()]
        biases = [node.input[2] for node in graph.node if node.op_type == "Conv"]
        assert all((bias in quants) == (flavour == "hls4ml") for bias in biases)
        assert flavour == "finn" or all(shape == [] for shape in scales)
        assert all(shapes[node.input[k]] == [] for node in quants.values() for k in range(2, len(node.input)))


def test_binary_weights_are_bipolar(tmp_path):
    write(one_layer([[1, -1], [-1, -1]], [0, 1], 1, 1), tmp_path / "m.onnx")
    assert "BipolarQuant" in {node.op_type for node in onnx.load(str(tmp_path / "m.onnx")).graph.node}


def test_true_widths_are_in_the_metadata(tmp_path):
    (model,), _ = lowered(CONV, SHIFTING["weight"])
    write(model, tmp_path / "m.onnx")
    notes = {entry.key: entry.value for entry in onnx.load(str(tmp_path / "m.onnx")).metadata_props}
    widths = json.loads(notes["probq.widths"])
    assert len(widths) == 4
    assert all(bits == sorted(set(bits)) and max(bits) <= 5 for bits in widths.values())


@pytest.mark.parametrize("low", range(-9, 3))
@pytest.mark.parametrize("high", [3, 4, 7, 8, 255])
def test_the_width_of_a_range_is_the_narrowest(low, high):
    found = width(low, high)
    lo, hi = found.limits
    assert lo <= low
    assert high <= hi
    if found.bits > 2 - (low >= 0):
        lo, hi = Width(found.bits - 1, found.signed, False).limits
        assert low < lo or hi < high


def test_an_average_that_is_no_power_of_two_is_refused_with_the_way_out(tmp_path):
    (model,), _ = lowered(NETWORKS["volume"], SHIFTING["one scale"])
    with pytest.raises(probq.ProbqError, match=r"no power of two.*export to ONNX or C"):
        write(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_accumulator_beyond_24_bits_is_refused_with_bound_and_limit(tmp_path):
    model = one_layer(np.full((1, 1000), 127), [0], 10, 255)
    with pytest.raises(probq.ProbqError, match=r"node fc .*64,770,\d+, the limit is 16,777,215 \(24 bits"):
        write(model, tmp_path / "m.onnx")


def test_an_unknown_flavour_is_refused(tmp_path):
    with pytest.raises(probq.ProbqError, match="'hls4ml' or 'finn'"):
        write(one_layer([[1]], [0], 1, 3), tmp_path / "m.onnx", "vitis")


def test_levels_that_no_quantizer_has_are_refused(tmp_path):
    nodes = list(one_layer([[1]], [0], 1, 3).nodes)
    nodes[2] = Node("q", "requantize", ("fc",), {"lo": 0, "hi": 3, "start": -3, "step": 2}, nodes[2].tensors)
    with pytest.raises(probq.ProbqError, match="neither consecutive integers"):
        write(probq.IntegerModel(nodes, "out", 1.0), tmp_path / "m.onnx")


def test_only_our_own_files_run(tmp_path):
    write(one_layer([[1]], [0], 1, 3), tmp_path / "m.onnx")
    proto = onnx.load(str(tmp_path / "m.onnx"))
    del proto.metadata_props[:]
    onnx.save(proto, str(tmp_path / "m.onnx"))
    with pytest.raises(probq.ProbqError, match=r"qonnx\.write wrote"):
        run(tmp_path / "m.onnx", [[1]])


def test_a_missing_library_names_its_extra(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(probq.ProbqError, match=r'pip install "probq\[qonnx\]"'):
        write(one_layer([[1]], [0], 1, 3), tmp_path / "m.onnx")


@pytest.mark.parametrize("bits", [(2, 2), (4, 4), (2, 4)], ids=str)
def test_bops_are_what_qonnx_counts(bits, tmp_path):
    """An independent count of LeNet-5's BOPs; qonnx takes binary weights for float32, so they are left out."""
    from qonnx.util.inference_cost import inference_cost

    plan = probq.Plan(weight=ladder(bits[0]), input=ladder(bits[1], signed=False), scales="tensor", profile="shift")
    model = probq.lower(probq.quantize(lenet5(), torch.rand(4, 1, 28, 28), plan=plan))
    write(model, tmp_path / "m.onnx", "hls4ml")
    counted = inference_cost(str(tmp_path / "m.onnx"), discount_sparsity=False)["total_cost"]
    assert counted["total_bops"] == model.metadata["bops"]
    assert counted["total_macs"] == sum(layer["macs"] for layer in model.metadata["layers"])
