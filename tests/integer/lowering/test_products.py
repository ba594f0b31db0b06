"""Products of two tensors have two learned widths, a place in every cost, and exact integers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exact_integers import assert_exact
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import probq
from probq import Plan
from probq.codebooks import ladder
from probq.integer.layer_table import layers_of
from probq.network.tracing.trace import layers
from probq.testing import decided_copy, deployed
from probq.testing.deployed_blocks import Attentive, Gated, SqueezeExcitation

NETWORKS = {name: (net, example) for name, net, example in deployed()}


class Of(nn.Module):
    """A function of two vectors that layers compute, with a layer behind."""

    def __init__(self, function, width=3):
        super().__init__()
        self.a, self.b, self.function = nn.Linear(4, width), nn.Linear(4, width), function
        self.last = nn.LazyLinear(2)

    def forward(self, x):
        return self.last(self.function(self.a(x), self.b(x)).flatten(1))


def quantized(function, shape=(4,), **plan):
    torch.manual_seed(0)
    net, x = Of(function).eval(), torch.randn(16, *shape)
    net(x)
    q = probq.quantize(net, x, Plan(**plan)) if plan else probq.quantize(net, x)
    return q.eval(), x


FUNCTIONS = {
    "times": (lambda a, b: a * b, (4,), 3),
    "in place": (lambda a, b: a.mul_(b), (4,), 3),
    "torch.mul": (torch.mul, (4,), 3),
    "of itself": (lambda a, b: a * a + b, (4,), 3),
    "of three": (lambda a, b: a * b * a.relu(), (4,), 6),
    "broadcast": (lambda a, b: a.unsqueeze(2) * b.unsqueeze(1), (4,), 9),
    "with a constant": (lambda a, b: 0.3 * a * b, (4,), 3),
    "of the input's own": (lambda a, b: a * b.sigmoid(), (5, 4), 15),
    "matrices": (lambda a, b: a @ b.transpose(1, 2), (5, 4), 75),
    "bmm": (lambda a, b: torch.bmm(a.transpose(1, 2), b), (5, 4), 45),
    "gram": (lambda a, b: a.transpose(1, 2) @ a + b.mean(1, keepdim=True), (5, 4), 45),
    "square": (lambda a, b: torch.matmul(a[:, :3], a[:, :3]) + b[:, :3], (5, 4), 27),
    "einsum": (lambda a, b: torch.einsum("bid,bjd->bij", a, b), (5, 4), 75),
    "einsum of numbers": (lambda a, b: torch.einsum("bi,bj->bij", a, b), (4,), 9),
    "scores": (lambda a, b: F.scaled_dot_product_attention(a, b, a), (5, 4), 150),
    "glu": (lambda a, b: F.glu(torch.cat([a, b], 1), 1), (4,), 3),
    "addcmul": (lambda a, b: torch.addcmul(a, a, b, value=0.5), (4,), 3),
    "lerp": (lambda a, b: torch.lerp(a, b, b.sigmoid()), (4,), 3),
    "baddbmm": (lambda a, b: torch.baddbmm(a, a[:, :, :2], b[:, :2], alpha=2), (5, 4), 30),
    "broadcast matrices": (lambda a, b: a[:, None] @ b.reshape(len(b), 5, 3, 1), (5, 4), 75),
}


@pytest.mark.parametrize(("function", "shape", "macs"), FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("profile", ["dyadic", "shift"])
def test_the_integers_are_what_the_decided_network_computes(function, shape, macs, profile, tmp_path):
    q, x = quantized(function, shape, profile=profile)
    assert q.notes == ()
    assert sum(layer.macs for layer in q.layers if layer.is_product) == macs
    assert_exact(q, torch.cat([x, 3 * x]), tmp_path)
    torch.manual_seed(1)
    for _, quantizer in q.named_quantizers():
        quantizer.logits.data.normal_(1.5, 1.5)
    (a,) = q.sample(1, seed=1)
    model = probq.lower(q, a)
    decided = q.at(a).eval()(3 * x.double()).detach().numpy()
    assert np.array_equal(model(3 * x) * model.output_scale, decided)
    np.testing.assert_allclose(decided_copy(q, a)(3 * x.double()).detach().numpy(), decided, rtol=1e-9, atol=1e-9)


def test_a_product_is_that_of_both_rounded_operands():
    """By hand: operands rounded half up to levels of their widths, and multiplied."""
    net, x = Of(lambda a, b: a * b).eval(), torch.randn(16, 4)
    net(x)
    q = probq.quantize(net, x, Plan(input=ladder(3))).eval()
    model = probq.lower(q)
    values = model.values(model.quantize_input(x.double()))
    (node,) = [node for node in model.nodes if node.op == "product"]
    plain, found = decided_copy(q, q.mode()), {}
    for name in "ab":
        plain.net.get_submodule(name).register_forward_hook(lambda _, args, y, name=name: found.update({name: y}))
    plain(x.double())
    codes = []
    for side, name in (("left", "a"), ("right", "b")):
        scale = 2.0 ** round(float(q.inputs[f"mul().{side}.input"].log2_scale[0].detach()))
        codes.append(np.floor(found[name].detach().numpy() / scale + 0.5).clip(-3, 3))
        assert len(np.unique(codes[-1])) > 3
    assert all(np.array_equal(values[name], sides) for name, sides in zip(node.inputs, codes, strict=True))
    assert np.array_equal(values[node.name], codes[0] * codes[1])
    assert node.bound == 9


def test_costs_are_those_of_a_layer_with_the_widths_of_both():
    q, _ = quantized(lambda a, b: a @ b.transpose(1, 2), (5, 4))
    layer = next(layer for layer in q.layers if layer.is_product)
    assert (layer.name, layer.input, layer.weight) == ("matmul()", "matmul().left.input", "matmul().right.input")
    assert (layer.macs, layer.weights, layer.inputs, layer.others, layer.outputs) == (75, 0, 15, 15, 25)
    widths = q.mode().widths | {"matmul().left.input": 3, "matmul().right.input": 5}
    assert probq.cost.total([layer], widths) == 75 * 3 * 5
    assert probq.cost.total([layer], widths, probq.cost.ebops) == 75 * 3 * 5
    assert probq.cost.total([layer], widths, probq.cost.storage) == 0
    assert probq.cost.total([layer], widths, probq.cost.activations) == 15 * 3 + 15 * 5
    frame = probq.table(q)
    assert frame.loc["matmul().right.input", ["layer", "kind", "MACs"]].tolist() == ["matmul()", "input", 75]
    every = sum(layer.macs for layer in q.layers) + 0.0
    assert probq.cost.full(q.layers) == every * 32 * 32


def test_the_table_of_an_integer_model_has_them():
    q, _ = quantized(lambda a, b: a @ b.transpose(1, 2), (5, 4), input=ladder(3), weight=ladder(4))
    (row,) = [row for row in layers_of(probq.lower(q)) if row.op == "matmul"]
    assert (row.name, row.shape, row.weight_bits, row.input_bits, row.macs, row.bops) == (
        "matmul()", (3, 5), 3, 3, 75, 75 * 3 * 3,
    )  # fmt: skip
    assert row.accumulator_bits == (3 * 3 * 3).bit_length() + 1


def test_products_of_matrices_are_counted_as_torch_counts_them():
    net, x = NETWORKS["attention"]
    with FlopCounterMode(display=False) as counter:
        net(x)
    assert sum(layer.macs for layer in layers(net, x)) == counter.get_total_flops() // 2 // len(x)


def test_macs_of_gates_by_hand():
    blocks = {
        "squeeze": (SqueezeExcitation(6, 3), torch.randn(2, 6, 4, 5), 6 * 3 * 2 + 6 * 4 * 5),
        "gates": (Gated(6, 1), torch.randn(2, 6, 8), (6 * 6 * 3 * 2 + 6 + 6 * 12 + 6) * 8),
        "attention": (Attentive(8, 2), torch.randn(2, 5, 8), 5 * (8 * 24 + 8 * 8) + 2 * 5 * 5 * 8),
    }
    for block, x, macs in blocks.values():
        assert sum(layer.macs for layer in layers(block, x)) == macs


def test_an_operand_has_a_ladder_by_its_own_sign_and_one_width_may_be_tied():
    plan = Plan(input=None, tie_input="all")
    net, x = Of(lambda a, b: a * b.sigmoid()).eval(), torch.randn(16, 4)
    net(x)
    q = probq.quantize(net, x, plan)
    assert q.inputs["mul().left.input"].ladder.signed
    assert not q.inputs["mul().right.input"].ladder.signed
    assert q.sites == {"mul().right.input": "mul().left.input", "last.input": "mul().left.input"}
    uniform = probq.quantize(net, x, probq.uniform(4, 2))
    assert uniform.mode().widths["mul().right.input"] == 2
    assert not uniform.inputs["mul().right.input"].ladder.signed


def test_the_network_s_own_input_is_an_operand_of_eight_bits(tmp_path):
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(x * self.a(x).sigmoid())

    x = torch.randn(16, 4)
    q = probq.quantize(Gate().eval(), x)
    assert q.mode().widths["mul().left.input"] == 8
    assert len(q.inputs["mul().left.input"].ladder) == 1
    model = assert_exact(q.eval(), 3 * x, tmp_path)
    assert sum(node.op == "input" for node in model.nodes) == 1


def test_fits_keep_budgets_that_count_products_and_files_keep_them(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), Attentive(8, 2), nn.Flatten(), nn.Linear(40, 3))
    x, y = torch.randn(64, 5, 4), torch.randint(0, 3, (64,))
    q = probq.quantize(net, x)
    before = float(q.inputs["1.matmul().left.input"].log2_scale[-1].detach())
    probq.fit(q, [(x, y)] * 4, probq.Budget(percent=1.0), epochs=2, progress=False, seed=0)
    a = q.mode()
    assert a.percent() <= 1.0
    assert float(q.inputs["1.matmul().left.input"].log2_scale[-1].detach()) != before
    q.save(tmp_path / "q.safetensors")
    again = probq.load(tmp_path / "q.safetensors", net)
    assert torch.equal(again.eval()(x), q.eval()(x))
    tuned = again.at(a)
    probq.fit(tuned, [(x, y)] * 4, epochs=1, progress=False)
    assert_exact(tuned.eval(), x, tmp_path)
    with pytest.raises(probq.ProbqError, match=r"no product of two tensors|another network"):
        probq.load(tmp_path / "q.safetensors", nn.Sequential(nn.Linear(4, 8), nn.Identity(), nn.Flatten(), net[3]))


REFUSED = {
    "whole numbers": (lambda a, b: (a.int() * b.int()).float(), "to in the network .*whole numbers of real ones"),
    "over the batch": (lambda a, b: a.transpose(0, 1) @ b, "transpose in the network|batch"),
    "fewer axes": (lambda a, b: a * b[:, 0], "mul in the network .*as many axes"),
    "of examples": (lambda a, b: a * b[:1], "mul in the network .*as their first axis|batch"),
    "with several matrices": (
        lambda a, b: (a[:, None, None] @ torch.ones(2, 3, 3)).flatten(1),
        "matmul in the network .*constants must be one matrix",
    ),
    "over the batch by a matrix": (lambda a, b: torch.ones(4, 3) @ a, "matmul in the network .*may not be summed over"),
    "of groups": (
        lambda a, b: F.scaled_dot_product_attention(*[a[:, None]] * 3, enable_gqa=True),
        "scaled_dot_product_attention in the network .*no enable_gqa",
    ),
}


@pytest.mark.filterwarnings("ignore:probq.lower will refuse", "ignore:.*outside of")
@pytest.mark.parametrize(("function", "message"), REFUSED.values(), ids=REFUSED)
def test_other_products_are_refused_by_name(function, message):
    torch.manual_seed(0)
    net, x = Of(function).eval(), torch.randn(3, 4)
    net(x)
    with pytest.raises(probq.ProbqError, match=message):
        probq.lower(probq.quantize(net, x))


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_products_that_a_plan_leaves_in_float_are_refused():
    net, x = Of(lambda a, b: a * b).eval(), torch.randn(16, 4)
    net(x)
    q = probq.quantize(net, x, lambda layer: None if layer.is_product else Plan())
    assert any("mul() stays float, as planned" in note for note in q.notes)
    with pytest.raises(probq.ProbqError, match=r"mul in the network .*give the product a plan"):
        probq.lower(q)


def test_sums_beyond_31_bits_name_product_bound_and_limit():
    wide = Plan(ladder(8), ladder(16), activation=16)
    net, x = Of(lambda a, b: a @ b.transpose(1, 2)).eval(), torch.randn(16, 5, 4)
    net(x)
    with pytest.warns(
        UserWarning, match=r"matmul\(\) cannot be lowered: its sums of 3 products may reach 3,221,028,867"
    ):
        q = probq.quantize(net, x, wide)
    with pytest.raises(probq.ProbqError, match=r"the limit is 2,147,483,647 \(31 bits\); use narrower widths"):
        probq.lower(q)
