"""The negative ELBO of a step against Pyro's, value and gradients, where both draw the same numbers."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import Normal

import probq
from probq import estimators, priors
from probq.codebooks import binary, ladder, pruned, ternary
from probq.testing import zoo
from probq.training.svi.elbo import small_weights
from probq.training.svi.elbo.negative_elbo import NegativeElbo

SIZE = 100


ZOO = list(zoo())


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(64, 3)
    )


VECTOR, IMAGE = torch.Size([6]), torch.Size([2, 8, 8])
FINE = ladder(1, 2, 3, 4, 5, 6, 8)
PLANS: dict[str, dict[str, Any]] = {
    "default": {},
    "other ladders": {"weight": ladder(pruned(), binary(), ternary(), 4), "input": ladder(2, 8, signed=False)},
    "powers of two": {"profile": "shift"},
    "scales of tensors": {"scales": "tensor"},
    "channels": {"gates": "channel"},
    "weights": {"gates": "weight"},
    "nearest": {"codes": 1},
    "all levels": {"codes": 4, "weight": ladder(2, 3)},
    "free codes": {"free_codes": True, "weight": ladder(1, 2)},
    "zeros kept": {"keep_zeros": True, "weight": ladder(2, 4, 8)},
    "second order": {"estimator": estimators.SecondOrder()},
    "straight through": {"estimator": estimators.StraightThrough()},
    "mean gradient": {"estimator": estimators.MeanGradient()},
    "relaxed": {"estimator": estimators.Gumbel()},
    "noise": {"estimator": estimators.LocalReparametrization()},
    "prior of codes": {"code_prior": priors.Normal()},
    "prior of widths": {"width_prior": priors.Energy([0.5, 1.0, 0.0, 2.0]), "weight": ladder(1, 2, 4, 8)},
}


@pytest.fixture(params=[0.2, 0.61], ids=["low", "high"])
def same_numbers(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """All random numbers are one number, in whatever order and shape they are drawn."""

    def constant(like: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.full_like(like, request.param)

    monkeypatch.setattr(torch, "rand_like", constant)
    monkeypatch.setattr(torch, "randn_like", constant)
    for place in ("probq.codebooks.rounding.stochastic", "probq.training.svi.elbo.drawn_vector"):
        monkeypatch.setattr(f"{place}.uniform", constant)


def fitted(net: nn.Module, shape: torch.Size, temperature: float = 0.7, **plan: Any) -> tuple[Any, Tensor, Tensor]:
    """A network in training with gates anywhere, and a batch."""
    torch.manual_seed(1)
    x, y = torch.randn(12, *shape), torch.arange(12) % 3
    q = probq.quantize(net, x, plan=probq.Plan(**plan)).train()
    q.likelihood, q.temperature = probq.likelihoods.Categorical(), temperature
    shaken(q)
    return q, x, y


@torch.no_grad()
def shaken(q: Any) -> None:
    """Gates and scales are anywhere."""
    for _, quantizer in q.named_quantizers():
        quantizer.logits.copy_(torch.randn_like(quantizer.logits))
        quantizer.log2_scale.add_(0.2 * torch.randn(quantizer.log2_scale.shape))


def gradients(q: Any, loss: Callable[[], Tensor]) -> tuple[float, dict[str, Tensor]]:
    """A loss and its gradients by the parameters' names; batch statistics do not move."""
    state = {name: tensor.clone() for name, tensor in q.state_dict().items()}
    q.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    q.load_state_dict(state)
    return float(value.detach()), {n: p.grad.clone() for n, p in q.named_parameters() if p.grad is not None}


def check(q: Any, x: Any, y: Tensor) -> None:
    """Value and gradients are those of Pyro's trace."""
    ours, own = gradients(q, lambda: NegativeElbo(q)(x, y, SIZE).loss)
    pyros, expected = gradients(q, lambda: TraceMeanField_ELBO().differentiable_loss(q.model, q.guide, x, y, SIZE))
    assert ours == pytest.approx(pyros, rel=1e-5)
    for name, gradient in expected.items():
        if name in own:
            scale = max(float(gradient.abs().max()), 1e-3)
            torch.testing.assert_close(own[name] / scale, gradient / scale, rtol=1e-4, atol=1e-4, msg=name)
        else:
            assert not gradient.any(), name
    assert all(name in expected or not gradient.any() for name, gradient in own.items())


@pytest.mark.usefixtures("same_numbers")
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_bound_is_that_of_pyro(plan: dict[str, Any], temperature: float) -> None:
    check(*fitted(perceptron(), VECTOR, temperature, **plan))


@pytest.mark.parametrize("same_numbers", [0.61], indirect=True)
@pytest.mark.filterwarnings("ignore:.*(float|refuse)")
@pytest.mark.parametrize(("net", "example"), [row[1:] for row in ZOO], ids=[row[0] for row in ZOO])
def test_the_bound_of_other_networks_is_that_of_pyro(same_numbers: None, net: nn.Module, example: Any) -> None:
    q = probq.quantize(copy.deepcopy(net), example).train()
    with torch.no_grad():
        output = q(*example if isinstance(example, tuple) else (example,))
    q.likelihood, q.temperature = law_of_first, 0.7
    shaken(q)
    check(q, example, torch.zeros_like(first(output)))


def law_of_first(output: Any) -> Normal:
    """Around the first tensor of an output."""
    return Normal(first(output), 1.0)


def first(output: Any) -> Tensor:
    """The first tensor of an output."""
    return output if isinstance(output, Tensor) else output[0]


@pytest.mark.parametrize("same_numbers", [0.61], indirect=True)
@pytest.mark.usefixtures("same_numbers")
@pytest.mark.parametrize("rounding", [True, False])
@pytest.mark.parametrize("profile", ["dyadic", "shift"])
@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("most", [8192, 0], ids=["together", "alone"])
def test_the_bound_at_decided_widths_is_that_of_pyro(
    rounding: bool, profile: str, folded: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_weights, "MOST", most)
    q, x, y = fitted(convolutions(), IMAGE, profile=profile)
    for name, quantizer in q.named_quantizers():
        quantizer.fix(2 if name.endswith("weight") else quantizer.ladder.bits[-1])
    q.rounding, q.folded = rounding, folded
    check(q, x, y)
    own = NegativeElbo(q)
    first = own(x, y, SIZE)
    q.quantizer("0.weight").fix(8)  # between two steps, as a user may
    assert not torch.equal(own(x, y, SIZE).loss, first.loss)
    check(q, x, y)


@pytest.mark.usefixtures("same_numbers")
def test_the_bound_with_some_widths_decided_is_that_of_pyro() -> None:
    """Codes of decided widths have another gradient in a cold fit than those beside them."""
    q, x, y = fitted(perceptron(), VECTOR)
    q.quantizer("2.weight").fix(3)
    assert not NegativeElbo(q).small.usable
    check(q, x, y)
    q.quantizer("0.weight").fix(1)
    q.quantizer("4.weight").fix(8)
    assert NegativeElbo(q).small.usable
    check(q, x, y)


@pytest.mark.parametrize("same_numbers", [0.61], indirect=True)
@pytest.mark.usefixtures("same_numbers")
@pytest.mark.parametrize("most", [8192, 0], ids=["together", "alone"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_bound_with_rounded_codes_and_free_widths_is_that_of_pyro(
    plan: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_weights, "MOST", most)
    q, x, y = fitted(perceptron(), VECTOR, **plan)
    q.rounding = True
    check(q, x, y)
    assert q.quantizer("0.weight").logits.grad.abs().max() > 0
