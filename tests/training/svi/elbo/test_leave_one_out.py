"""The unbiased gradient: against enumeration, and whatever the plan: priors, tied widths, gates of channels, images."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import probq
from probq.codebooks import ladder
from probq.priors import Normal
from probq.testing import enumerable, enumerate_joint, law_parameters, posterior_of
from probq.training.svi.elbo.leave_one_out import leave_one_out

MODELS = {small.name: small for small in enumerable()}
ESTIMATES = 16


def flat(grads: Any, like: Any) -> Tensor:
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, like, strict=True)]
    return torch.cat([g.reshape(-1) for g in filled]).double()


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize(
    ("name", "temperature", "changes"),
    [
        ("shared weight", 1.0, {}),  # where the straight-through derivative of a rounded input is wrong
        ("softmax, ternary", 0.5, {}),
        ("linear, ternary", 1.0, {"code_prior": Normal(0.5)}),
    ],
)
def test_its_mean_is_the_exact_gradient(name: str, temperature: float, changes: dict[str, Any]) -> None:
    small = MODELS[name]
    q, x = small.quantized(**changes)
    y = small.targets(q, x)
    with torch.no_grad():
        for _, quantizer in q.named_quantizers():
            quantizer.logits.fill_(0.3)
    parameters = list(law_parameters(q).values())
    joint = enumerate_joint(q, x, y)
    # at another temperature: the bound of a likelihood to the power 1 / temperature, times the temperature
    tempered = type(joint)(
        joint.owners, joint.outputs, {k: t / temperature for k, t in joint.tables.items()}, joint.log_widths,
        joint.log_codes,
    )  # fmt: skip
    bound = temperature * tempered.elbo(*posterior_of(q))
    exact = flat(torch.autograd.grad(-bound, parameters), parameters)
    q.temperature = temperature
    torch.manual_seed(0)
    losses, rows = [], []
    for _ in range(ESTIMATES):
        loss = leave_one_out(q, x, y, draws=128)
        losses.append(float(loss.detach()))
        rows.append(flat(torch.autograd.grad(loss, parameters, allow_unused=True), parameters))
    drawn, values = torch.stack(rows), torch.tensor(losses)
    assert float(-bound.detach()) == pytest.approx(float(values.mean()), abs=4 * float(values.std()) / ESTIMATES**0.5)
    error = drawn.std(0) / ESTIMATES**0.5
    assert ((drawn.mean(0) - exact).abs() < 4.5 * error + 1e-6).all()
    assert float(exact.norm()) > 2 * float(error.norm())


def test_the_likelihood_is_scaled_to_the_data_set() -> None:
    small = MODELS["linear"]
    q, x = small.quantized()
    y = small.targets(q, x)
    q.temperature = 0.0
    values = []
    for size in (None, 3 * len(y)):
        torch.manual_seed(1)
        values.append(float(leave_one_out(q, x, y, size, draws=8).detach()))
    assert values[1] == pytest.approx(3 * values[0], rel=1e-6)


def image() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    "plan",
    [
        probq.Plan(weight=ladder(1, 2, 4), gates="channel"),
        probq.Plan(weight=ladder(2, 4), tie_weight="all", codes=3),
        probq.Plan(weight=ladder(2, 4), codes=1),
    ],
    ids=["channels", "tied", "rounded"],
)
def test_every_law_has_a_gradient_under_any_plan(plan: probq.Plan) -> None:
    torch.manual_seed(2)
    x, y = torch.randn(4, 1, 4, 4), torch.tensor([0, 1, 2, 1])
    q = probq.quantize(image(), x, plan)
    before = {n: p.detach().clone() for n, p in q.named_parameters()}
    leave_one_out(q, x, y, draws=16).backward()
    for _, quantizer in q.named_sites():
        if quantizer.free:
            assert float(quantizer.logits.grad.abs().sum()) > 0
    drawn = q.net[0].weight.grad
    assert (drawn is None) == (plan.codes == 1)
    assert all(torch.equal(p, before[n]) for n, p in q.named_parameters())


def test_one_draw_has_no_others_to_compare_with() -> None:
    small = MODELS["linear"]
    q, x = small.quantized()
    with pytest.raises(probq.ProbqError, match="2 or more"):
        leave_one_out(q, x, small.targets(q, x), draws=1)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of draws of every call in a fit."""
    calls: list[int] = []

    def count(q: Any, x: Any, y: Tensor, size: int, draws: int, *rest: Any) -> Tensor:
        calls.append(draws)
        return leave_one_out(q, x, y, size, draws, *rest)

    monkeypatch.setattr("probq.training.svi.objective.leave_one_out", count)
    return calls


@pytest.mark.parametrize(
    ("features", "plan", "options", "draws"),
    [
        (4, {}, {"temperature": 1.0}, [64, 64]),
        (4, {}, {"temperature": 1.0, "draws": 3}, [3, 3]),
        (4, {}, {"draws": 2}, [2, 2]),
        (4, {}, {}, []),
        (4, {}, {"temperature": 1.0, "draws": 1}, []),
        (4, {}, {"temperature": 1.0, "rule": probq.rules.ConstraintGuided()}, []),
        (4, {"estimator": probq.estimators.MeanGradient()}, {"temperature": 1.0}, []),
        (33, {}, {"temperature": 1.0}, []),
    ],
)
def test_fit_takes_many_draws_where_the_posterior_of_a_small_network_is_wanted(
    monkeypatch: pytest.MonkeyPatch, features: int, plan: dict[str, Any], options: dict[str, Any], draws: list[int]
) -> None:
    x, y = torch.randn(6, features), torch.tensor([0, 1, 1, 0, 1, 0])
    q = probq.quantize(nn.Linear(features, 2), x, probq.Plan(**plan))
    calls = counted(monkeypatch)
    probq.fit(q, [(x, y)], epochs=2, search=1.0, seed=0, progress=False, **options)
    assert calls == draws


def test_fit_moves_laws_by_many_draws_and_everything_else_until_half_of_the_search() -> None:
    torch.manual_seed(3)
    x, y = torch.randn(8, 3), torch.randn(8, 1)
    q = probq.quantize(nn.Linear(3, 1), x)
    running = probq.steps(q, [(x, y)], epochs=8, search=0.5, temperature=1.0, seed=0)
    rows = [{n: p.detach().clone() for n, p in q.named_parameters()} for _ in running]
    moved = [{n for n in after if not torch.equal(before[n], after[n])} for before, after in pairwise(rows)]
    laws = {"net.weight", "quantizers./weight.logits", "quantizers./weight.log_spread"}
    others = {"net.bias", "likelihood.log_sd"}
    assert moved[0] == laws | others  # search, scales stay
    assert moved[1] == laws  # the second half of the search
    assert moved[2] == laws
    assert others <= moved[4]  # tuning


@pytest.mark.parametrize("draws", [0, 1.5, True])
def test_a_number_of_draws_that_is_none_is_refused(draws: Any) -> None:
    x, y = torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])
    q = probq.quantize(nn.Linear(3, 2), x)
    with pytest.raises(probq.ProbqError, match="draws"):
        probq.fit(q, [(x, y)], epochs=1, draws=draws, progress=False)


def test_draws_do_not_go_with_a_rule_that_moves_gates() -> None:
    x, y = torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])
    q = probq.quantize(nn.Linear(3, 2), x)
    with pytest.raises(probq.ProbqError, match="one draw"):
        probq.fit(q, [(x, y)], probq.Budget(percent=2), 1, draws=4, rule=probq.rules.ConstraintGuided(), progress=False)
