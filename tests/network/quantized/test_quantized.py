"""`quantize` and `Quantized`: decided networks, bad inputs, and what stays as it was."""

import warnings
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probq
from probq import Budget, Plan, ProbqError, Quantized, plot
from probq.codebooks import ladder, learned, levels, powers_of_two
from probq.network.tracing.layer import Layer
from probq.testing import decided_copy, zoo

pytestmark = pytest.mark.filterwarnings("ignore:the posterior was never fitted")  # any draw will do here

ZOO = {name: (net, example) for name, net, example in zoo()}
X = torch.rand(6, 5)


def net(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 7), *([nn.BatchNorm1d(7)] if norm else []), nn.ReLU(), nn.Linear(7, 3)).eval()


PLANS = {
    "tensor": Plan(),
    "channel": Plan(weight=ladder(0, 1, 2, 4), gates="channel"),
    "weight": Plan(weight=ladder(0, 2, 8), gates="weight"),
    "tensor scales": Plan(scales="tensor", codes=1),
    "channel gates, tensor scales": Plan(gates="channel", scales="tensor"),
    "powers of two": Plan(weight=ladder(0, powers_of_two(3)), codes=3),
    "learned": Plan(weight=ladder(1, learned([-2.3, -0.5, 0.7, 2.1])), codes=4),
    "learned inputs": Plan(input=ladder(1, learned([0, 0.6, 1.3, 2.8]), 4, signed=False)),
    "network input": Plan(network_input=ladder(2, 4, 8, signed=False)),
}


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_at_reproduces_an_assignment(plan: Plan, norm: bool) -> None:
    q = probq.quantize(net(norm), X, plan=plan)
    for a in (q.mode(), q.mode(Budget(percent=5)), *q.sample(2, seed=1)):
        fixed = q.at(a)
        assert fixed.mode() == a
        assert torch.equal(fixed(X), q._decided(a, (X,)))
        np.testing.assert_allclose(
            fixed(X).numpy(), decided_copy(q, a)(X.double()).detach().numpy(), rtol=1e-5, atol=1e-6
        )
        assert fixed.at(a).mode() == a
        for same in fixed.sample(2, seed=0):
            assert str(same.widths) == str(a.widths)


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize("name", ["residual", "depthwise", "conv1d", "transposed groups", "tied embedding"])
def test_at_reproduces_assignments_of_awkward_networks(name: str) -> None:
    model, example = ZOO[name]
    q = probq.quantize(model, example, plan=Plan(weight=ladder(1, 2, 4)))
    for a in q.sample(3, seed=0):
        fixed = q.at(a)
        assert fixed.mode() == a
        assert torch.equal(fixed(example), q._decided(a, (example,)))


def test_fine_tuning_starts_from_the_decided_network() -> None:
    """In training mode a fixed network computes the same, with a gradient, in the inputs' precision."""
    q = probq.quantize(net(norm=True), X)
    fixed = q.at(q.sample(1, seed=0)[0])
    decided = fixed(X)
    fixed.train()
    fixed.rounding = True
    trained = fixed(X)
    torch.testing.assert_close(trained.detach(), decided, rtol=1e-5, atol=1e-5)
    trained.sum().backward()
    assert all(p.grad is not None for p in fixed.net[0].parameters())


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize("name", ["residual", "conv1d", "depthwise"])
@pytest.mark.parametrize(("profile", "error"), [("shift", 1e-3), ("dyadic", 1 / 16)])  # scales within 1/32 of a gain
def test_folded_normalisation_at_16_bits_is_the_float_network(name: str, profile: str, error: float) -> None:
    model, example = ZOO[name]
    wide = ladder(16)
    q = probq.quantize(model, example, plan=Plan(wide, wide, wide, profile=profile))
    with torch.no_grad():
        expected = model(example)
    assert float((q(example) - expected).abs().max()) < error * float(expected.abs().max())


def test_scales_leave_room_for_what_folding_multiplies() -> None:
    """A gain of 1.4 is 2^0 times 1.4: without room, weights that fill their range would be clipped by 30 %."""
    model = nn.Sequential(nn.Conv1d(1, 1, 2, bias=False), nn.BatchNorm1d(1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[[0.98, -0.9]]]))
        model[1].running_var.fill_(1 - 1e-5)
        model[1].weight.fill_(1.4)
    example = torch.tensor([[[1.0, 0.5, -0.25, 0.125]]])
    for scales in ("channel", "tensor"):
        plan = Plan(ladder(16), ladder(16), ladder(16), scales=scales, profile="shift")
        with torch.no_grad():
            torch.testing.assert_close(
                probq.quantize(model, example, plan=plan)(example), model(example), atol=1e-3, rtol=0
            )


@pytest.mark.parametrize("profile", ["shift", "dyadic"])
@pytest.mark.parametrize("bits", [1, 2])
def test_a_dead_channel_stays_finite(profile: str, bits: int) -> None:
    """A normalisation with a gain of exactly 0 folds to weights of 0, which cannot be divided by it again."""
    model = net(norm=True)
    with torch.no_grad():
        model[1].weight[2] = 0.0
    q = probq.quantize(model, X, plan=Plan(weight=ladder(bits), profile=profile))
    drawn = q.sample(4, seed=0)
    fixed = [q.at(a) for a in drawn]
    middle = np.array([a.codes["0.weight"][2] for a in (q.mode(), *drawn)]) == 1  # of three levels, 0
    assert bits == 1 or middle.all()
    assert all(p.isfinite().all() for f in fixed for p in f.net.parameters())
    assert all(f(X).isfinite().all() for f in fixed)


class Branch(nn.Module):
    """The convolution's output is read before the normalisation too: folding would change it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class SharedNorm(nn.Module):
    """One normalisation behind two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(3, 2), nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x)) * self.norm(self.b(x))


class TiedConvolutions(nn.Module):
    """Two layers with one weight, each with a normalisation of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.norm_a, self.norm_b = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm_b(self.b(self.norm_a(self.a(x))))


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize(("make", "shape"), [(Branch, (2, 1, 4)), (SharedNorm, (4, 3)), (TiedConvolutions, (4, 3))])
def test_normalisations_that_cannot_be_folded_are_not(make: type, shape: tuple[int, ...]) -> None:
    """Fresh normalisations are nearly the identity, so that only the structure, not the output, shows the trouble."""
    wide = ladder(16)
    q = probq.quantize(make().eval(), torch.randn(shape), plan=Plan(weight=wide, input=wide, network_input=wide))
    assert [layer.norm for layer in q.layers] == [None] * len(q.layers)
    for module in q.net.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.add_(0.5)
            module.running_var.mul_(3)
    x = torch.randn(shape) / 2
    with torch.no_grad():
        torch.testing.assert_close(q(x), q.net(x), atol=2e-3, rtol=1e-3)


def test_a_convolution_planned_float_keeps_its_normalisation() -> None:
    model, example = ZOO["residual"]
    wide = Plan(ladder(16), ladder(16), ladder(16), profile="shift")
    q = probq.quantize(model, example, plan=lambda layer: None if layer.name == "conv" else wide)
    assert "conv stays float, as planned; it counts as 32 x 32 bits" in q.notes
    assert "conv.weight" not in q.mode().widths
    with torch.no_grad():
        torch.testing.assert_close(q(example), model(example), atol=1e-3, rtol=1e-3)
    macs = {layer.name: layer.macs for layer in q.layers}
    assert q.mode().cost() == macs["conv"] * 1024 + (macs["stem"] + macs["head"]) * 256


def test_planned_layers_see_their_geometry() -> None:
    seen: list[Layer] = []

    def plan(layer: Layer) -> Plan:
        seen.append(layer)
        return Plan(weight=ladder(8) if layer.first else ladder(1, 2), input=ladder(3))

    q = probq.quantize(net(), X, plan=plan)
    assert [layer.name for layer in seen] == ["0", "2"]
    assert q.weights["0.weight"].ladder.bits == (8,)
    assert q.weights["2.weight"].ladder.bits == (1, 2)
    assert q.inputs["0.input"].ladder.bits == (8,)  # the network's own input keeps its default
    assert q.inputs["2.input"].ladder.bits == (3,)


@pytest.mark.parametrize("gates", ["tensor", "channel", "weight"])
def test_quantizers_start_at_the_trained_weights(gates: str) -> None:
    model = net()
    q = probq.quantize(model, X, plan=Plan(weight=ladder(2, 12), gates=gates))
    assert all(torch.equal(a, b) for a, b in zip(q.net.parameters(), model.parameters(), strict=True))
    a = q.mode()
    widths, codes = a.widths["0.weight"], a.codes["0.weight"]
    assert (np.asarray(widths) == 12).all()  # gates start open
    scales = q.weights["0.weight"].scales()[1].detach().numpy().reshape(-1, 1)
    values = (codes - 2047.0) * scales
    np.testing.assert_allclose(values, model[0].weight.detach().numpy(), atol=float(scales.max()))


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("scales", ["channel", "tensor"])
def test_folding_keeps_codes_where_integers_multiply(bits: int, scales: Literal["channel", "tensor"]) -> None:
    """A scale within 1/32 of the folded gain's, and every level what it was, or its opposite under a negative gain."""
    model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6))
    gain = torch.tensor([0.4, -1.3, 0.71, 2.9, -0.05, 1.0])
    with torch.no_grad():
        model[1].weight.copy_(gain)
        model[1].running_var.fill_(1 - model[1].eps)
    q = probq.quantize(model.eval(), X, Plan(weight=ladder(bits), scales=scales))
    plain = q.rung("0.weight", torch.ones(1))
    levels = q.weights["0.weight"].law(q.location("0.weight", plain), plain).mode
    q.folded = True
    rung = q.rung("0.weight", torch.ones(1))
    folded = q.weights["0.weight"].law(q.location("0.weight", rung), rung).mode
    assert torch.equal(folded, levels * gain.sign()[:, None])
    np.testing.assert_allclose((rung.scale / plain.scale).detach().reshape(-1), gain.abs(), rtol=1 / 32)
    multiplier = np.frexp(rung.scale.detach().numpy())[0] * 32
    assert np.array_equal(multiplier, multiplier.round())  # to the last bit: hardware has no other
    change = torch.autograd.grad(q.location("0.weight", rung).sum(), q.net.get_parameter("1.weight"))[0]
    np.testing.assert_allclose(change, q.net.get_parameter("0.weight").detach().sum(1), rtol=1 / 32)  # of weight * gain


TAKERS = {
    "fit": lambda n: probq.fit(n, BATCHES, progress=False),
    "steps": lambda n: next(probq.steps(n, BATCHES)),
    "decide": lambda n: probq.decide(n, BUDGET, BATCHES),
    "lower": probq.lower,
    "table": probq.table,
    "ensemble": lambda n: probq.ensemble(n, 2, BUDGET),
    "restarts": lambda n: probq.restarts(n, BATCHES),
    "tune_temperature": lambda n: probq.tune_temperature(n, BATCHES, BATCHES),
    "effective_bops": lambda n: probq.effective_bops(n, probq.quantize(net(), X).mode()),
    **{f"plot.{p.__name__}": p for p in (plot.channels, plot.cost, plot.depth, plot.forest, plot.weights, plot.widths)},
}
BATCHES, BUDGET = [(X, torch.arange(6) % 3)], Budget(percent=5.0)


@pytest.mark.parametrize("name", TAKERS)
def test_a_network_that_was_not_quantized_is_refused(name: str) -> None:
    with pytest.raises(ProbqError, match=rf"^{name} takes .* q = probq\.quantize\(network, example\), not Sequential"):
        TAKERS[name](net())
    with pytest.raises(ProbqError, match="NoneType"):
        TAKERS[name](None)


def test_chains_that_were_not_quantized_are_refused() -> None:
    for chains in (net(), None, [net()]):
        with pytest.raises(ProbqError, match="give a quantized network, or a list of them"):
            probq.to_arviz(chains)


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True])
def test_seeds_that_are_none_are_refused(seed: Any) -> None:
    q = probq.quantize(net(), X)
    for call in (
        lambda: q.sample(2, seed=seed),
        lambda: q.predict(X, 2, seed=seed),
        lambda: probq.to_arviz(q, draws=2, seed=seed),
        lambda: probq.ensemble(q, 2, BUDGET, seed=seed),
        lambda: probq.convergence([q, q], seed=seed),
        lambda: probq.restarts(q, BATCHES, seed=seed),
        lambda: probq.fit(q, BATCHES, seed=seed, progress=False),
        lambda: next(probq.steps(q, BATCHES, seed=seed)),
        lambda: probq.calibration.interval(np.mean, [1.0, 2.0], seed=seed),
    ):
        with pytest.raises(ProbqError, match="seed must be an integer of 0 or more"):
            call()
    assert q.sample(2, seed=np.int64(3)) == q.sample(2, seed=3)


def test_predict_is_deterministic_with_a_seed_and_a_row_a_network() -> None:
    q = probq.quantize(net(), X)
    q.calibrated = True
    first, again, other = (q.predict(X, draws=5, seed=s) for s in (0, 0, 1))
    assert first.shape == (5, 6, 3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for row, a in zip(first, q.sample(5, seed=0), strict=True):
        assert torch.equal(row, q.at(a)(X))


def test_calls_restore_the_mode_of_every_module() -> None:
    q = probq.quantize(net(norm=True), X)
    q.calibrated = True
    q.train()
    q.net[1].eval()  # a normalisation the user froze
    before = [module.training for module in q.modules()]
    q(X)
    q.predict(X, draws=2, seed=0)
    q.sample(1, seed=0)
    assert [module.training for module in q.modules()] == before
    assert not q.folded
    q.eval()
    q(X)
    assert not any(module.training for module in q.modules())


def test_calling_gives_the_same_as_the_mode_in_either_mode_of_training() -> None:
    q = probq.quantize(net(norm=True), X)
    q.eval()
    expected = q(X)
    q.train()
    assert torch.equal(q(X), expected)
    assert torch.equal(q(X), q.at(q.mode())(X))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"sum": self.left(a) + self.right(b), "count": torch.tensor(2)}


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_several_arguments_and_a_dictionary_of_outputs() -> None:
    model, args = TwoInputs(), (torch.rand(2, 3), torch.rand(2, 4))
    wide = ladder(16)
    q = probq.quantize(model, args, plan=Plan(weight=wide, input=wide, network_input=wide))
    q.eval()
    out = q(*args)
    with torch.no_grad():
        torch.testing.assert_close(out["sum"], model(*args)["sum"], atol=1e-3, rtol=1e-3)
    assert out["sum"].dtype == torch.float32
    assert int(out["count"]) == 2


class Unreached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(5, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def spoiled() -> nn.Module:
    model = net()
    model[0].bias.data[0] = torch.inf
    return model


BAD: dict[str, tuple[Any, Any, Any, str]] = {
    "not a module": (lambda x: x, X, None, "takes a torch.nn.Module"),
    "no layer": (nn.ReLU(), X, None, "no layer that probq can quantize"),
    "wrong shape": (net(), torch.rand(6, 4), None, r"cannot run on the example \(shapes \[\(6, 4\)\]\)"),
    "unreached": (Unreached(), X, None, "never reaches layer spare"),
    "not finite": (spoiled(), X, None, "0.bias holds a value that is not finite"),
    "a plan of the wrong type": (net(), X, 8, "a plan is a probq.Plan"),
    "a planner of the wrong type": (net(), X, lambda layer: "8 bits", "a plan is a probq.Plan"),
    "a planner of nothing": (net(), X, lambda layer: None, "leaves every layer in float"),
    "a table for channels": (net(), X, Plan(weight=ladder(levels([-0.5, 0, 2])), gates="channel"), "whole numbers"),
}


@pytest.mark.parametrize(("model", "example", "plan", "part"), BAD.values(), ids=BAD)
def test_quantize_refuses(model: Any, example: Any, plan: Any, part: str) -> None:
    with pytest.raises(ProbqError, match=part):
        probq.quantize(model, example, plan=plan)


def test_quantize_refuses_a_likelihood_that_is_no_function() -> None:
    with pytest.raises(ProbqError, match=r"likelihood is a function from outputs to a law, .* not 'normal'"):
        probq.quantize(net(), X, likelihood="normal")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"weight": (2, 4)}, r"Plan\(weight=...\) takes a ladder"),
        ({"weight": None}, r"Plan\(weight=...\) takes a ladder"),
        ({"input": 8}, r"Plan\(input=...\) takes a ladder"),
        ({"network_input": "8"}, r"Plan\(network_input=...\) takes a ladder"),
        ({"gates": "row"}, "takes one of 'tensor', 'channel', 'weight'"),
        ({"scales": "weight"}, "takes one of 'tensor', 'channel'"),
        ({"codes": 0}, "number of levels"),
        ({"codes": True}, "number of levels"),
        ({"codes": 1.5}, "number of levels"),
        ({"spread": 0}, "spread"),
        ({"spread": 10.0}, "spread"),
    ],
)
def test_plans_refuse(options: dict[str, Any], part: str) -> None:
    with pytest.raises(ProbqError, match=part):
        Plan(**options)


def test_an_unknown_field_of_a_plan_is_an_error() -> None:
    with pytest.raises(TypeError, match="weights"):
        Plan(weights=ladder(2))  # type: ignore[call-arg]


def test_assignments_of_other_networks_are_refused() -> None:
    q = probq.quantize(net(), X)
    other = probq.quantize(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), X)
    with pytest.raises(ProbqError, match="another network"):
        q.at(other.mode())
    with pytest.raises(ProbqError, match="another network"):
        q.at(probq.quantize(nn.Linear(5, 3), X).mode())
    channel = probq.quantize(net(), X, plan=Plan(gates="channel"))
    with pytest.raises(ProbqError, match="another plan"):
        q.at(channel.mode())
    with pytest.raises(ProbqError, match="not on the ladder"):
        q.at(probq.quantize(net(), X, plan=Plan(weight=ladder(7))).mode())


def test_what_is_shown_names_layers_and_ladders() -> None:
    text = repr(probq.quantize(net(), X))
    assert "2 layers, 4 quantizers" in text
    assert "0.weight: (1, 2, 3, 4, 5, 6, 8) bits" in text


def test_a_quantized_network_can_be_copied_and_its_state_restored() -> None:
    import copy

    q = probq.quantize(net(norm=True), X, plan=Plan(gates="channel"))
    twin: Quantized = copy.deepcopy(q)
    with torch.no_grad():
        for p in q.parameters():
            p.add_(0.3)
    assert not torch.equal(q(X), twin(X))
    q.load_state_dict(twin.state_dict())
    assert torch.equal(q(X), twin(X))


def test_an_unsigned_input_is_offered_unsigned_codes() -> None:
    q = probq.quantize(net(), X - 0.5)
    assert q.inputs["0.input"].ladder.signed
    assert not q.inputs["2.input"].ladder.signed


def test_networks_in_float64_stay_in_float64() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q = probq.quantize(net().double(), X.double())
        q.calibrated = True
        assert q(X.double()).dtype == torch.float64
        assert q.predict(X.double(), draws=2, seed=0).dtype == torch.float64


def test_a_network_that_is_one_layer_keeps_its_weight() -> None:
    """Its weight is named `.weight` by its layer and `weight` by torch."""
    q = probq.quantize(nn.Linear(5, 2), X).eval()
    q.calibrated = True
    weight, before = q.net.weight, q.net.weight.detach().clone()
    q.predict(X, draws=3)
    q(X)
    assert q.net.weight is weight
    assert torch.equal(weight.detach(), before)


@pytest.mark.parametrize("gates", ["tensor", "channel", "weight"])
def test_channels_last_is_for_weights_and_images_alone(gates: Literal["tensor", "channel", "weight"]) -> None:
    """Scales and logits of a convolution have five axes, which torch would refuse; outputs stay the same."""
    torch.manual_seed(3)
    images, inner = torch.rand(2, 3, 8, 8), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    q = probq.quantize(inner, images, Plan(gates=gates, codes=3))
    before, state = q(images), {name: value.clone() for name, value in q.state_dict().items()}
    q.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert q.net[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index, operator, union-attr]
    assert any(value.dim() == 5 for value in state.values())
    assert all(torch.equal(value, state[name]) for name, value in q.state_dict().items())
    assert torch.allclose(q(images.to(memory_format=torch.channels_last)), before, atol=1e-6)
    q.double()
    assert all(value.dtype == torch.float64 for value in q.state_dict().values() if value.is_floating_point())
