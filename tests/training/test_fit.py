"""Fits of small networks: reproducible, stopped in time, restored after trouble, and no wider than their budget."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from scipy.stats import bernoulli, logistic
from torch import Tensor, nn
from torch.distributions import Laplace
from torch.utils.data import DataLoader, TensorDataset

import probq
from probq import Budget, Plan, ProbqError, Quantized, Rates
from probq import cost as costs
from probq.codebooks import ladder
from probq.evaluation.diagnostics.held_out import validate
from probq.likelihoods import for_target
from probq.training.ptq.batch_norm import estimate_norms
from probq.training.ptq.input_scales import set_input_scales
from probq.utils.batches import Batches

CPU = torch.device("cpu")


def data(n: int = 96) -> tuple[Tensor, Tensor]:
    """Two rings of points, told apart by their distance from the origin."""
    generator = torch.Generator().manual_seed(11)
    angle = torch.rand(n, generator=generator) * 2 * math.pi
    y = torch.arange(n) % 2
    radius = 0.5 + y + 0.1 * torch.randn(n, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), y


XS, YS = data()
PAIRS = [(XS[k : k + 32], YS[k : k + 32]) for k in range(0, 96, 32)]


def network(norm: bool = False, spread: float = 0.1) -> Quantized:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(2, 16), *([nn.BatchNorm1d(16)] if norm else []), nn.ReLU(), nn.Linear(16, 2))
    plan = Plan(weight=ladder(1, 2, 4), input=ladder(1, 2, 4, signed=False), spread=spread)
    return probq.quantize(net, XS, plan=plan)


def state(q: Quantized) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in q.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def quiet(
    q: Quantized, batches: Any = PAIRS, budget: Budget | None = None, epochs: int = 2, **options: Any
) -> probq.History:
    return probq.fit(q, batches, budget, epochs, progress=False, **options)


@pytest.mark.parametrize("norm", [False, True])
def test_the_same_seed_gives_the_same_fit(norm: bool) -> None:
    results = []
    for seed in (0, 0, 1):
        q = network(norm)
        history = quiet(q, budget=Budget(percent=1.5), seed=seed)
        results.append((history.to_frame(), state(q)))
        torch.rand(5)  # whatever else happens in between
    assert results[0][0].equals(results[1][0])
    assert same(results[0][1], results[1][1])
    assert not same(results[0][1], results[2][1])


def test_a_seeded_fit_leaves_the_global_generator_alone_and_the_store_empty() -> None:
    before = torch.get_rng_state()
    quiet(network(), seed=0)
    assert not torch.equal(before, torch.get_rng_state())  # making the network seeds torch
    q = network()
    before = torch.get_rng_state()
    quiet(q, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    assert not pyro.get_param_store().keys()


def test_a_fit_learns_and_keeps_its_budget() -> None:
    q, budget = network(), Budget(percent=2.0)
    before = validate(q, Batches(PAIRS, CPU))
    history = quiet(q, budget=budget, epochs=60, rates=Rates(weights=1e-2), validation=PAIRS, seed=0)
    after = validate(q, Batches(PAIRS, CPU))
    assert after["accuracy"] > 0.9 > before["accuracy"]
    assert after["loss"] < before["loss"]
    assert q.mode().cost() <= budget.absolute(q.layers)
    assert q.mode().limit == budget.absolute(q.layers)
    assert all(a.cost() <= budget.absolute(q.layers) for a in q.sample(20, seed=0))
    frame = history.to_frame()
    assert list(frame.step) == list(range(180))
    assert list(frame.epoch) == [k // 3 for k in range(180)]
    assert set(frame.phase[:108]) == {"search"}
    assert set(frame.phase[108:]) == {"tune"}
    assert len(history.validation) == 60
    assert frame.percent.iloc[-1] == pytest.approx(q.mode().percent())
    assert [q.training, q.folded, q.rounding, decided(q)] == [False, False, False, False]


def decided(q: Quantized) -> bool:
    return any(quantizer.fixed is not None for _, quantizer in q.named_quantizers())


def test_records_of_steps_add_up() -> None:
    q = network()
    for step in probq.steps(q, PAIRS, epochs=1, temperature=0.5, search=1.0):
        assert step.loss == pytest.approx(step.nll + step.kl, rel=1e-4)
        assert step.limit is None
        assert step.kl > 0
    full = costs.full(q.layers)
    assert step.percent == pytest.approx(100 * float(q.expected_cost(q.cost_tables()).detach()) / full, rel=0.05)


def test_an_unreachable_budget_stops_before_the_first_step() -> None:
    q = network()
    before = state(q)
    cheapest = 32 * 1 * 8 + 32 * 1 * 1
    with pytest.raises(ProbqError, match=f"cost {cheapest:,}"):
        quiet(q, budget=Budget(limit=cheapest - 1))
    assert same(before, state(q))
    quiet(q, budget=Budget(limit=cheapest), epochs=1)
    assert q.mode().cost() == cheapest


def test_a_budget_below_fixed_widths_stops_before_the_first_step() -> None:
    fixed = network().at(network().mode())
    before = state(fixed)
    with pytest.raises(ProbqError, match="the widths are fixed and cost"):
        quiet(fixed, budget=Budget(limit=fixed.mode().cost() - 1))
    assert same(before, state(fixed))


class Spoiled(nn.Module):
    """A network whose output stops being finite once it was called `good` times in training."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.layer, self.left = nn.Linear(2, 2), good

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.left -= 1
        return self.layer(x) * (math.nan if self.left < 0 else 1.0)


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro's own
@pytest.mark.parametrize(("good", "step", "kept"), [(1, 1, 0), (30, 30, 25)])
def test_a_loss_that_is_not_finite_names_its_step_and_restores_the_last_good_state(
    good: int, step: int, kept: int
) -> None:
    q = probq.quantize(Spoiled(good).eval(), XS)
    states = []
    with pytest.raises(ProbqError, match=f"became nan at step {step}; .* state of step {kept}"):
        states.extend(state(q) for _ in probq.steps(q, PAIRS, epochs=20, seed=0, search=1.0))
    assert len(states) == step
    reference = states[kept - 1] if kept else None
    if reference is not None:
        assert same(reference, state(q))
    assert all(value.isfinite().all() for value in q.state_dict().values() if value.is_floating_point())


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro's own
def test_gates_that_are_not_finite_are_told_of_as_a_loss() -> None:
    q = network()
    running = probq.steps(q, PAIRS, probq.Budget(percent=1), epochs=20, seed=0)
    next(running)
    next(quantizer for _, quantizer in q.named_quantizers() if quantizer.free).logits.data.fill_(math.nan)
    with pytest.raises(ProbqError, match="became nan at step 1; the network keeps its state of step 0"):
        next(running)
    assert all(value.isfinite().all() for value in q.state_dict().values() if value.is_floating_point())


@pytest.mark.parametrize("spoil", [(0, math.nan), (0, math.inf)])
def test_data_that_is_not_finite_is_refused(spoil: tuple[int, float]) -> None:
    x = XS.clone()
    x[40, 0] = spoil[1]
    batches = [(x[:32], YS[:32]), (x[32:64], YS[32:64])]
    with pytest.raises(ProbqError, match="batch 1 of the data holds a value that is not finite"):
        quiet(network(), batches)


BATCHES: dict[str, tuple[Any, str]] = {
    "empty list": ([], "holds no batch"),
    "empty generator": ((pair for pair in ()), "holds no batch"),
    "empty loader": (DataLoader(TensorDataset(XS[:8], YS[:8]), batch_size=32, drop_last=True), "holds no batch"),
    "not iterable": (3, "an iterable of"),
    "tensors only": ([XS], "not an .input, target. pair"),
    "three parts": ([(XS, YS, YS)], "not an .input, target. pair"),
    "target is a list": ([(XS, [0, 1])], "not an .input, target. pair"),
}


@pytest.mark.parametrize(("batches", "part"), BATCHES.values(), ids=BATCHES)
def test_data_that_is_none_is_refused(batches: Any, part: str) -> None:
    with pytest.raises(ProbqError, match=part):
        quiet(network(), batches)


def test_targets_that_are_no_class_are_refused() -> None:
    with pytest.raises(ProbqError, match="does not fit the likelihood"):
        quiet(network(), [(XS, YS + 1)])


def test_a_generator_read_once_is_kept() -> None:
    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        yield from PAIRS

    a, b = network(), network()
    assert quiet(a, stream(), seed=0).to_frame().equals(quiet(b, PAIRS, seed=0).to_frame())
    assert same(state(a), state(b))


def test_a_loader_and_its_list_have_the_same_size() -> None:
    loader = DataLoader(TensorDataset(XS, YS), batch_size=20)
    assert Batches(loader, CPU).size == Batches(list(loader), CPU).size == 96
    assert len(Batches(loader, CPU)) == 5
    assert Batches([(XS[:10], YS[:10]), (XS[:4], YS[:4])], CPU).size == 14


def regression() -> Quantized:
    return probq.quantize(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)), XS)


def test_real_targets_pick_a_normal_law_with_learned_noise() -> None:
    q = regression()
    target = (XS**2).sum(1, keepdim=True)
    history = quiet(q, [(XS, target)], epochs=60, rates=Rates(weights=1e-2), seed=0)
    assert isinstance(q.likelihood, probq.likelihoods.Normal)
    assert float(q.likelihood.log_sd.detach()) != 0
    assert history.steps[-1].nll < history.steps[0].nll
    residual = (q(XS) - target).square().mean()
    assert "accuracy" not in validate(q, Batches([(XS, target)], CPU))
    sd = math.exp(float(q.likelihood.log_sd.detach()))
    by_hand = float(residual) / (2 * sd**2) + math.log(sd) + 0.5 * math.log(2 * math.pi)
    assert validate(q, Batches([(XS, target)], CPU))["loss"] == pytest.approx(by_hand, rel=1e-4)


def test_learned_noise_starts_at_the_residuals_of_the_float_network() -> None:
    for target in (400 * XS[:, :1], 400 * XS[:, 0]):
        q = regression()
        q.likelihood = probq.likelihoods.Normal()
        set_input_scales(q, Batches([(XS[:60], target[:60]), (XS[60:], target[60:])], CPU))
        residual = 400 * XS[:, :1].numpy() - q.net(XS).detach().numpy()
        assert q.likelihood.log_sd.item() == pytest.approx(math.log(np.sqrt((residual**2).mean())), rel=1e-5)
    q.likelihood = probq.likelihoods.Normal(2.0)
    set_input_scales(q, Batches([(XS, XS[:, :1])], CPU))
    assert q.likelihood.log_sd.item() == pytest.approx(math.log(2))


def test_targets_without_the_last_axis_are_given_it() -> None:
    q = regression()
    quiet(q, [(XS, XS[:, 0])], epochs=1)
    with pytest.raises(ProbqError, match="do not fit outputs"):
        quiet(regression(), [(XS, XS)], epochs=1)


def test_a_likelihood_of_ones_own() -> None:
    q = regression()
    history = quiet(
        q, [(XS, XS[:, :1])], epochs=1, search=1.0, temperature=1e-9, likelihood=lambda out: Laplace(out, 2.0)
    )
    assert history.steps[0].nll > math.log(4.0)  # the density of a Laplace law is at most 1 / (2 scale)
    quiet(q, [(XS, XS[:, :1])], epochs=1, likelihood=probq.likelihoods.Normal(0.5))
    quiet(q, [(XS, XS[:, :1])], epochs=1, likelihood=lambda out: Laplace(out, 1.0))
    with pytest.raises(ProbqError, match="must return a torch distribution"):
        quiet(q, [(XS, XS[:, :1])], epochs=1, likelihood=lambda out: out)


def test_the_usual_likelihoods() -> None:
    assert for_target(torch.tensor([1, 2])) is probq.likelihoods.categorical
    law = probq.likelihoods.Normal(sd=2.0)
    assert not law.log_sd.requires_grad
    assert float(law(torch.zeros(1)).log_prob(torch.ones(1))) == pytest.approx(
        -0.125 - math.log(2) - 0.5 * math.log(2 * math.pi)
    )
    with pytest.raises(ProbqError, match="above 0"):
        probq.likelihoods.Normal(sd=0.0)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"epoch": 3}, "epoch"),
        ({"learning_rate": 3}, "learning_rate"),
        ({"epochs": 0}, "epochs must be"),
        ({"epochs": 1.5}, "epochs must be"),
        ({"search": 1.2}, "search is the share"),
        ({"temperature": 0}, "temperature must be"),
        ({"temperature": math.nan}, "temperature must be"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], part: str) -> None:
    with pytest.raises(ProbqError, match=part):
        probq.fit(network(), PAIRS, progress=False, **options)


def test_steps_in_the_users_own_hands() -> None:
    q = network()
    running = probq.steps(q, PAIRS, Budget(percent=3), epochs=2, search=0.5)
    first = next(running)
    assert (first.step, first.phase) == (0, "search")
    assert q.training
    running.close()  # given up: the network is usable
    assert not q.training
    assert not decided(q)
    assert q(XS).shape == (96, 2)
    q = network()
    assert [step.phase for step in probq.steps(q, PAIRS, Budget(percent=3), epochs=2, search=0.5)] == ["search"] * 3 + [
        "tune"
    ] * 3


@pytest.mark.filterwarnings("ignore:the posterior was never fitted")
@pytest.mark.parametrize("norm", [False, True])
def test_fine_tuning_at_an_assignment_keeps_its_widths(norm: bool) -> None:
    q = network(norm)
    a = q.sample(1, Budget(percent=2), seed=0)[0]
    tuned = q.at(a)
    before = tuned.net[0].weight.detach().clone()
    history = quiet(tuned, budget=Budget(percent=2), epochs=3, seed=0)
    assert tuned.mode().widths == a.widths
    assert {step.phase for step in history.steps} == {"tune"}
    assert not torch.equal(before, tuned.net[0].weight)
    assert history.steps[-1].percent == pytest.approx(a.percent())
    assert q.mode().widths != {}  # the original stays as it was
    assert not decided(q)


def test_the_network_shipped_is_the_network_tuned() -> None:
    """The last step's loss, taken in training, is that of what ships: same codes, scales, biases and folding."""
    q = network(norm=True)
    for step in probq.steps(
        q, [(XS, YS)], Budget(percent=3), epochs=8, search=0.5, rates=Rates(weights=0.0, scales=0.0)
    ):
        if step.phase == "tune":
            law = torch.log_softmax(q(XS), -1)
            assert step.nll == pytest.approx(-float(law[torch.arange(96), YS].mean().detach()), rel=3e-3)
    shipped = q(XS)
    assert torch.equal(shipped, q.at(q.mode())(XS))
    # the variance that is folded is unbiased, 96/95 of the batch's
    assert -float(torch.log_softmax(shipped, -1)[torch.arange(96), YS].mean()) == pytest.approx(step.nll, rel=3e-3)


def test_tuning_that_draws_codes_has_their_divergence_by_hand() -> None:
    q = network().at(network().mode())
    divergence = 0.0
    for name, quantizer in q.weights.items():
        rung = q.rung(name, quantizer.probs())
        levels = rung.levels.levels().double().numpy()
        u = (q.location(name) / rung.scale).detach().double().numpy()
        below = np.clip(np.searchsorted(levels, u, side="right") - 1, 0, len(levels) - 2)
        low, high = levels[below], levels[below + 1]
        up = logistic.cdf((u - (low + high) / 2) / (math.exp(quantizer.log_spread.item()) * (high - low)))
        divergence += u.size * math.log(len(levels)) - bernoulli.entropy(up).sum()
    drawn, rounded = (next(probq.steps(q, PAIRS, epochs=1, temperature=0.5, rounding=r)) for r in (False, True))
    assert drawn.kl == pytest.approx(0.5 * divergence / 96, rel=1e-4)
    assert rounded.kl == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("rounding", [True, False])
def test_how_far_codes_stray_is_learned_where_they_are_drawn(rounding: bool) -> None:
    q = network().at(network().mode(Budget(percent=2)))
    before = q.weights["0.weight"].log_spread.item(), validate(q, Batches(PAIRS, CPU))["loss"]
    quiet(q, epochs=40, rates=Rates(weights=1e-2), rounding=rounding, seed=0)
    weight = q.weights["0.weight"]
    assert weight.is_certain == rounding
    assert weight.log_spread.item() != before[0]
    assert validate(q, Batches(PAIRS, CPU))["loss"] < before[1]
    assert not q.rounding


def test_draws_after_a_fit_that_rounds_codes_have_the_codes_of_the_mode() -> None:
    """What no step has drawn is not drawn afterwards; a fit that draws starts from the plan's spread again."""
    q = network(spread=0.3)
    quiet(q, budget=Budget(percent=2), epochs=4, seed=0)
    own = q.at(q.mode())
    for draw in q.sample(8, seed=0):
        mode = q.at(draw).mode().codes
        differ = sum((draw.codes[name] != mode[name]).sum() for name in mode)
        assert differ <= 0.01 * sum(codes.size for codes in mode.values())
    with pytest.warns(UserWarning, match="all draws are the same network; .*rounding=False"):
        own.sample(2, seed=0)
    next(probq.steps(own, PAIRS, epochs=1, rounding=False, seed=0))
    assert own.weights["0.weight"].log_spread.exp().item() == pytest.approx(0.3, rel=0.05)
    own.sample(2, seed=0)


# What a fit is made of


def test_validation_by_hand() -> None:
    q = network()
    result = validate(q, Batches(PAIRS, CPU))
    output = q(XS).double().detach().numpy()
    log_law = output - np.log(np.exp(output).sum(1, keepdims=True))
    assert result["loss"] == pytest.approx(-log_law[np.arange(96), YS.numpy()].mean(), rel=1e-5)
    assert result["accuracy"] == pytest.approx((output.argmax(1) == YS.numpy()).mean())


def test_calibration_takes_the_scales_of_the_first_examples() -> None:
    q = network()
    before = state(q)
    set_input_scales(q, Batches([(XS * 100, YS)], CPU))
    shift = q.inputs["0.input"].log2_scale - before["quantizers.0/input.log2_scale"]
    assert 6 <= float(shift.detach().mean()) <= 7  # log2 100 = 6.6
    assert q.calibrated


def test_calibration_warns_of_what_an_unsigned_ladder_cuts_off() -> None:
    q = probq.quantize(nn.Sequential(nn.Linear(2, 2)), XS.abs())
    with pytest.warns(UserWarning, match=r"0\.input has negative values .* but an unsigned ladder"):
        set_input_scales(q, Batches(PAIRS, CPU))


@pytest.mark.parametrize(
    ("bits", "signed", "warns"), [(1, True, True), (2, True, True), (3, True, False), (1, False, False)]
)
def test_calibration_warns_of_negative_levels_that_narrow_inputs_cannot_spare(
    bits: int, signed: bool, warns: bool
) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
    q = probq.quantize(net, XS, Plan(input=ladder(bits, 8, signed=signed)))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        set_input_scales(q, Batches(PAIRS, CPU))
    found = [str(w.message) for w in seen]
    assert (len(found) == 1 and found[0].startswith("2.input is never negative")) if warns else not found


def test_statistics_of_normalisation_are_those_of_the_decided_network() -> None:
    q = network(norm=True).at(network(norm=True).mode())
    q.folded = False
    seen: list[Tensor] = []
    handle = q.net[1].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    estimate_norms(q, Batches(PAIRS, CPU))
    handle.remove()
    assert len(seen) == 3
    mean = torch.stack([x.mean(0) for x in seen]).mean(0)
    variance = torch.stack([x.var(0) for x in seen]).mean(0)
    torch.testing.assert_close(q.net[1].running_mean, mean)
    torch.testing.assert_close(q.net[1].running_var, variance)
    assert q.net[1].momentum == 0.1
    assert not q.net[1].training


@pytest.mark.parametrize(
    ("likelihood", "targets", "told"),
    [
        (None, torch.tensor([0.0, 1.0, 2.0]), r"give whole numbers, y\.long\(\)"),
        (None, torch.tensor([0.5, 1.0, 2.0]), "give another likelihood"),
        (probq.likelihoods.Categorical(), torch.tensor([0.5, 1.0, 2.0]), "classes are whole numbers"),
    ],
)
def test_classes_given_as_real_numbers_are_told(likelihood: Any, targets: torch.Tensor, told: str) -> None:
    q = probq.quantize(torch.nn.Linear(3, 4), torch.rand(3, 3), likelihood=likelihood)
    with pytest.raises(ProbqError, match=told):
        probq.fit(q, [(torch.rand(3, 3), targets)], epochs=1, progress=False)
