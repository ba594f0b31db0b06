"""Networks of the kinds that are deployed: what is lowered, and what is exported, computes exactly what was decided."""

from collections import OrderedDict
from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.nn import functional as F

import probq
from probq import Plan
from probq.codebooks import ladder
from probq.export import memory
from probq.testing import decided_copy, deployed

NETWORKS = {name: (net, example) for name, net, example in deployed()}
PLANS = {
    "default": Plan(),
    "channel": Plan(weight=ladder(1, 2, 4), gates="channel", activation=5),
    "binary": Plan(ladder(1, 3), ladder(1, 2, signed=True), scales="tensor", profile="shift", activation=9),
}
every_network = pytest.mark.parametrize("network", NETWORKS)
every_plan = pytest.mark.parametrize("plan", PLANS)


@cache
def lowered(network, plan):
    """A quantized network, an assignment, its integer model, and inputs far beyond those that set the scales.

    The assignment is random, or the mode.
    """
    net, example = NETWORKS[network]
    q = probq.quantize(net, example, plan=PLANS[plan])
    torch.manual_seed(3)
    for _, quantizer in q.named_quantizers():
        quantizer.logits.data.normal_(1.5, 1.5)
    a = q.mode() if plan == "binary" else q.sample(1, seed=1)[0]
    x = torch.cat([example.double(), 3 * torch.randn(16, *example.shape[1:], dtype=torch.float64)])
    return q, a, probq.lower(q, a), x


@every_plan
@every_network
def test_the_integers_are_what_the_decided_network_computes(network, plan, tmp_path):
    q, a, model, x = lowered(network, plan)
    integers = model(x)
    assert len(np.unique(integers)) > 1
    assert np.array_equal(integers * model.output_scale, q.at(a).eval()(x).numpy())
    for node, values in zip(model.nodes, model.values(model.quantize_input(x)).values(), strict=True):
        assert np.abs(values).max() <= node.bound or node.op == "input"
    model.save(tmp_path / "m.safetensors")
    assert np.array_equal(probq.IntegerModel.load(tmp_path / "m.safetensors")(x), integers)


@every_plan
@every_network
def test_the_decided_network_is_a_plain_one_with_rounded_weights_and_activations(network, plan):
    q, a, _, x = lowered(network, plan)
    plain = decided_copy(q, a)(x).detach().numpy()
    np.testing.assert_allclose(q.at(a).eval()(x).numpy(), plain, rtol=1e-9, atol=1e-9)


@every_network
def test_onnx_runtime_computes_them(network, tmp_path):
    """With a width for each channel; other plans, and C, are in `tests/conformance`."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    _, _, model, x = lowered(network, "channel")
    integers = model.quantize_input(x)
    for packed, optimize in ((False, True), (True, False)):
        probq.export.onnx.write(model, tmp_path / "m.onnx", packed)
        found = probq.export.onnx.run(tmp_path / "m.onnx", integers, optimize)
        assert np.array_equal(found, model.run(integers))


def test_the_memory_files_hold_tables(tmp_path):
    _, _, model, x = lowered("functions", "default")
    memory.write(model, tmp_path / "m")
    assert probq.export.verify(model, tmp_path / "m", x).differing == 0
    tables = [node for node in model.nodes if node.op == "table"]
    assert len(tables) == len(list((tmp_path / "m").glob("*.table.mem"))) == 10


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@every_network
def test_sixteen_bits_are_as_good_as_float(network):
    net, example = NETWORKS[network]
    wide = Plan(ladder(16), ladder(16), ladder(16), activation=16, profile="shift")  # as in the zoo
    found, expected = probq.quantize(net, example, plan=wide)(example), net(example).detach()
    assert float((found - expected).abs().max()) < 1e-3 * float(expected.abs().max())


class Neck(nn.Module):
    """A function between two convolutions, called in a module of its own."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


REFUSED = {
    "another interpolation": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", antialias=True),
        "upsample_bicubic2d_aa in neck .*without antialias",
    ),
    "a fraction": (
        lambda x: F.interpolate(x, size=9),
        r"upsample_nearest2d in neck .*\(6, 6\) to \(9, 9\) are no whole",
    ),
    "padding without end": (
        lambda x: F.pad(x, (1, 1), value=-float("inf")).relu(),
        "pad in neck .*it pads with -inf",
    ),
}


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize(("function", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_integer_form_is_refused_by_operation_and_module(function, message):
    layers = {"first": nn.Conv2d(2, 4, 3), "neck": Neck(function), "last": nn.Conv2d(4, 2, 1)}
    q = probq.quantize(nn.Sequential(OrderedDict(layers)).eval(), torch.randn(4, 2, 8, 8))
    with pytest.raises(probq.ProbqError, match=message):
        probq.lower(q)


@pytest.mark.parametrize("plan", [Plan(activation=None), lambda layer: Plan() if layer.name == "2" else None])
def test_a_function_left_in_float_is_refused_with_the_way_out(plan):
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).eval()
    q = probq.quantize(net, torch.randn(8, 4), plan=plan)
    assert q.activations == {}
    with pytest.raises(probq.ProbqError, match=r"tanh in 1 .*Plan\(activation=8\)|stays float"):
        probq.lower(q)


@pytest.mark.parametrize("bits", [1, 17, 8.0, True, "8"])
def test_the_width_of_activations_is_checked(bits):
    with pytest.raises(probq.ProbqError, match="2 to 16 bits or None"):
        Plan(activation=bits)


def test_a_table_is_the_function_at_every_level():
    """By hand: levels of the argument times its step, the function in float64, rounded half up to the value's step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)).eval()
    q = probq.quantize(net, torch.randn(64, 4), plan=Plan(activation=4, input=ladder(16)))
    (node,) = [node for node in probq.lower(q).nodes if node.op == "table"]
    before, after = (
        2.0 ** round(float(s.log2_scale[0].detach())) for s in (q.activations["1"].input, q.activations["1"].output)
    )
    levels = np.arange(-7, 8)
    x = levels * before
    values = np.floor(x * norm.cdf(x) / after + 0.5).clip(-7, 7) * after
    behind = 2.0 ** round(float(q.inputs["2.input"].log2_scale[0].detach()))
    assert node.attributes["first"] == -7
    assert np.array_equal(node.tensors["table"] * behind, values)


def test_scales_of_functions_are_trained_calibrated_and_saved(tmp_path):
    torch.manual_seed(0)
    shared = nn.SiLU(inplace=True)
    net = nn.Sequential(nn.Linear(4, 8), shared, nn.Linear(8, 8), shared, nn.Linear(8, 3))
    x, y = 4 * torch.randn(256, 4), torch.randint(0, 3, (256,))
    q = probq.quantize(net, x[:32] / 100)
    before = {name: p.detach().clone() for name, p in q.named_parameters() if name.startswith("tables.")}
    assert list(q.activations) == ["1"]
    assert set(q.mode().widths) == {f"{n}.{part}" for n in (0, 2, 4) for part in ("weight", "input")}
    probq.fit(q, [(x, y)] * 4, probq.Budget(percent=3), epochs=2, progress=False, seed=0)
    trained = {name: p.detach() for name, p in q.named_parameters() if name in before and p.numel()}
    assert len(trained) == 2
    assert all(float((p - before[name]).abs()) > 1 for name, p in trained.items())
    assert all(float((p - p.round()).abs()) > 0 for p in trained.values())
    q.save(tmp_path / "q.safetensors")
    again = probq.load(tmp_path / "q.safetensors", net)
    model = probq.lower(again)
    assert torch.equal(again(x), q(x))
    assert np.array_equal(model(x) * model.output_scale, q(x.double()).detach().numpy())


def test_targets_without_tables_say_so(tmp_path):
    pytest.importorskip("onnx")
    _, _, model, _ = lowered("functions", "binary")
    with pytest.raises(probq.ProbqError, match=r"QONNX has no table, only .*; export to ONNX or C"):
        probq.export.qonnx.write(model, tmp_path / "q.onnx")
    with pytest.raises(probq.ProbqError, match="table has no Verilog form"):
        probq.export.verilog.write(model, tmp_path / "v")
