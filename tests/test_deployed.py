"""Networks of the kinds that are deployed: what is lowered, and what is exported, computes exactly what was decided."""

from functools import cache

import numpy as np
import pytest
import torch

import probq
from probq import Plan
from probq.codebooks import ladder
from probq.export import c, memory
from probq.testing import decided_copy, deployed

NETWORKS = {name: (net, example) for name, net, example in deployed()}
PLANS = {
    "default": Plan(),
    "channel": Plan(weight=ladder(0, 2, 4), gates="channel", activation=5),
    "binary": Plan(weight=ladder(1, 3), input=ladder(1, 2, signed=True), scales="tensor", activation=9),
}
every_network = pytest.mark.parametrize("network", NETWORKS)
every_plan = pytest.mark.parametrize("plan", PLANS)


@cache
def lowered(network, plan):
    """A quantized network, a random assignment, its integer model, and inputs far beyond those that set the scales."""
    net, example = NETWORKS[network]
    q = probq.quantize(net, example, plan=PLANS[plan])
    torch.manual_seed(3)
    for _, quantizer in q.named_quantizers():
        quantizer.logits.data.normal_(1.5, 1.5)
    (a,) = q.sample(1, seed=1)
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


@pytest.mark.parametrize("network", list(NETWORKS)[3:])
def test_the_c_header_computes_them(network, tmp_path):
    _, _, model, x = lowered(network, "default")
    c.write(model, tmp_path / "m.h")
    assert probq.export.verify(model, tmp_path / "m.h", x).differing == 0


@every_plan
@every_network
def test_onnx_runtime_computes_them(network, plan, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    _, _, model, x = lowered(network, plan)
    integers = model.quantize_input(x)
    for packed in (False, True):
        probq.export.onnx.write(model, tmp_path / "m.onnx", packed)
        for optimize in (False, True):
            found = probq.export.onnx.run(tmp_path / "m.onnx", integers, optimize)
            assert np.array_equal(found, model.run(integers))


def test_the_memory_files_hold_tables(tmp_path):
    _, _, model, x = lowered("functions", "default")
    memory.write(model, tmp_path / "m")
    assert probq.export.verify(model, tmp_path / "m", x).differing == 0
    tables = [node for node in model.nodes if node.op == "table"]
    assert len(tables) == len(list((tmp_path / "m").glob("*.table.mem"))) == 10


@every_network
def test_sixteen_bits_are_as_good_as_float(network):
    net, example = NETWORKS[network]
    wide = Plan(weight=ladder(16), input=ladder(16), network_input=ladder(16), activation=16)
    found, expected = probq.quantize(net, example, plan=wide)(example), net(example).detach()
    assert float((found - expected).abs().max()) < 1e-3 * float(expected.abs().max())
