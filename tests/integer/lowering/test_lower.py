"""The integer model computes exactly what the decided network computes."""

import numpy as np
import pytest
import torch
from networks import NETWORKS, PLANS, trained
from torch import nn

import probq
from probq.codebooks import ladder

pytestmark = pytest.mark.filterwarnings("ignore:the posterior was never fitted")  # any draw will do here


@pytest.mark.filterwarnings("ignore:.*has negative values")
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_no_output_differs(network, plan, tmp_path):
    make, data = network
    net = trained(make)
    q = probq.quantize(net, data(16), plan=plan)
    x = data(50)
    for assignment in [q.mode(), *q.sample(1, seed=1)]:
        model = probq.lower(q, assignment)
        integers = model(x)
        decided = q.at(assignment).eval()(x)
        assert decided.std() >= 0
        assert np.array_equal(integers * model.output_scale, decided.double().numpy())
        for node, values in zip(model.nodes, model.values(model.quantize_input(x)).values(), strict=True):
            assert np.abs(values).max() <= node.bound or node.op == "input"
    model.save(tmp_path / "m.safetensors")
    assert np.array_equal(probq.IntegerModel.load(tmp_path / "m.safetensors")(x), integers)


def test_the_mode_of_a_fitted_network_is_what_is_lowered():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    x, y = torch.rand(60, 1, 8, 8), torch.randint(0, 3, (60,))
    q = probq.quantize(net, x[:8])
    batches = [(x[i : i + 20], y[i : i + 20]) for i in (0, 20, 40)]
    probq.fit(q, batches, probq.Budget(percent=1.0), epochs=3, seed=0, progress=False)
    model = probq.lower(q)
    assert np.array_equal(model(x) * model.output_scale, q(x).double().numpy())
    assert model.metadata["percent"] <= 1.0
    assert model.metadata["widths"] == {name: int(bits) for name, bits in q.mode().widths.items()}


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (nn.Linear(5, 3), torch.rand(20, 5)),
        (nn.Conv2d(2, 3, 3), torch.rand(4, 2, 6, 6)),
        (nn.Embedding(5, 3), torch.arange(5)),
    ],
    ids=["linear", "conv", "embedding"],
)
def test_a_network_that_is_one_layer(net, x, tmp_path):
    q = probq.quantize(net, x)
    model = probq.lower(q)
    assert np.array_equal(model(x) * model.output_scale, q.at(q.mode()).eval()(x).double().numpy())
    model.save(tmp_path / "m.safetensors")
    assert np.array_equal(probq.IntegerModel.load(tmp_path / "m.safetensors")(x), model(x))


def test_averages_carry_their_divisor():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(8, 2)).eval()
    q = probq.quantize(net, torch.rand(8, 1, 6, 6), plan=probq.Plan(weight=ladder(4), input=ladder(4)))
    model = probq.lower(q)
    requantize = next(node for node in model.nodes if node.name == "3.input")
    assert int(requantize.tensors["multiplier"].max()) > 1
    x = torch.rand(200, 1, 6, 6)
    assert np.array_equal(model(x) * model.output_scale, q(x).double().numpy())


def test_an_average_as_output_keeps_its_divisor_in_the_scale():
    net = nn.Sequential(nn.Conv1d(1, 2, 1), nn.AdaptiveAvgPool1d(1)).eval()
    q = probq.quantize(net, torch.rand(8, 1, 3), plan=probq.Plan(weight=ladder(4)))
    model = probq.lower(q)
    x = torch.rand(20, 1, 3)
    assert np.allclose(model(x) * model.output_scale, q(x).double().numpy(), rtol=1e-6)
    assert np.log2(model.output_scale * 3) % 1 == 0


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Linear(4, 4), nn.Softmax(0), nn.Linear(4, 2)], "softmax in 1"),
        ([nn.Linear(4, 4), nn.LPPool1d(2, 2), nn.Linear(2, 2)], "in 1"),
    ],
    ids=["softmax over the batch", "norms of windows"],
)
def test_what_has_no_integer_form_is_refused_by_name(layers, message):
    q = probq.quantize(nn.Sequential(*layers).eval(), torch.randn(8, 4))
    with pytest.raises(probq.ProbqError, match=message):
        probq.lower(q)


def test_a_layer_left_in_float_is_refused():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    q = probq.quantize(net, torch.randn(8, 4), plan=lambda layer: probq.Plan() if layer.name == "0" else None)
    with pytest.raises(probq.ProbqError, match="stays float"):
        probq.lower(q)


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_an_accumulator_beyond_31_bits_is_refused_with_layer_and_limit():
    q = probq.quantize(
        nn.Sequential(nn.Linear(64, 2)),
        torch.randn(8, 64),
        plan=probq.Plan(weight=ladder(16), network_input=ladder(16)),
    )
    with pytest.raises(probq.ProbqError, match=r"layer 0 .*2,147,483,647 \(31 bits\)"):
        probq.lower(q)
