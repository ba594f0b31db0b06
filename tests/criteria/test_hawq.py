"""Traces against exact Hessians, and energies against losses of linear regressions, where they are exact."""

import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.functional import hessian

import probq
from probq import Plan, ProbqError, criteria
from probq.codebooks import ladder
from probq.criteria.measuring.hessian_traces import hessian_traces
from probq.criteria.measuring.ready import with_scales
from probq.likelihoods import Normal
from probq.utils.random_stream import Stream

X, Y = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
PROBES = 300


def test_traces_are_those_of_exact_hessians_within_their_error() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    q = with_scales(probq.quantize(net, X, Plan(weight=ladder(2, 8))), [(X, Y)])
    names = ["0.weight", "2.weight", "0.input", "2.input"]
    with Stream(0).training():
        found = hessian_traces(q.requires_grad_(False), [(X, Y)], names, PROBES, progress=False)

    def weights(flat: Tensor) -> Tensor:
        hidden = torch.tanh(F.linear(X, flat[:12].reshape(4, 3), net[0].bias))
        return F.cross_entropy(F.linear(hidden, flat[12:].reshape(3, 4), net[2].bias), Y)

    def inputs(y: Tensor, flat: Tensor) -> Tensor:  # of both layers, of one example, each changed by itself
        return F.cross_entropy(net[2](torch.tanh(net[0](flat[:3])) + flat[3:]), y)

    flat = torch.cat([net[0].weight.flatten(), net[2].weight.flatten()]).detach()
    of_weights = hessian(weights, flat)
    of_inputs = torch.stack([hessian(partial(inputs, y), F.pad(x, (0, 4))) for x, y in zip(X, Y, strict=True)])
    cases = {"0.weight": (of_weights, 0, 12), "2.weight": (of_weights, 12, 24)}
    cases |= {"0.input": (of_inputs, 0, 3), "2.input": (of_inputs, 3, 7)}
    for name, (whole, start, stop) in cases.items():
        every = whole.reshape(-1, *whole.shape[-2:])
        # z' H z of a block errs by what is off its diagonal, twice within the block and once beside it; the draws of
        # examples are independent of one another, and so are those of inputs and weights
        block = every[:, start:stop, start:stop]
        off = block - torch.diag_embed(block.diagonal(dim1=-2, dim2=-1))
        beside = every[:, start:stop].square().sum() - block.square().sum()
        spread = float((2 * off.square().sum() + beside).sqrt()) / len(every) / PROBES**0.5
        exact = float(block.diagonal(dim1=-2, dim2=-1).sum()) / len(every)
        assert found[name] == pytest.approx(exact, abs=4 * spread)
        assert abs(exact) > 4 * spread  # so that it is not 0 that was found


def regression(sd: float) -> tuple[Any, Tensor, Tensor, Tensor]:
    """A linear regression at its minimum whose inputs are uncorrelated, each of mean square 1."""
    x = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).repeat(3, 1)
    weight, noise = (
        torch.tensor([[0.31, -0.77, 0.52, 0.11]]),
        torch.tensor([0.3, 0.3, 0.3, 0.3, -0.3, -0.3, -0.3, -0.3]),
    )
    net = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(weight)
    y = x @ weight.T + F.pad(noise, (0, 4))[:, None]
    plan = Plan(weight=ladder(2, 3, 8), network_input=ladder(8, signed=True))
    return probq.quantize(net, x, plan, likelihood=Normal(sd)), x, y, weight


def test_energies_of_a_regression_with_uncorrelated_inputs_are_its_losses() -> None:
    q, x, y, weight = regression(sd=0.7)
    energy = criteria.hawq(q, [(x[:4], y[:4]), (x[4:], y[4:])], probes=1, progress=False)
    losses, scales = [], q.weights[".weight"].scales().detach()
    for scale, top in zip(scales, (1, 3, 127), strict=True):
        rounded = scale * torch.floor(weight / scale + 0.5).clamp(-top, top)
        losses.append(float(-torch.distributions.Normal(x @ rounded.T, 0.7).log_prob(y).mean()))
    np.testing.assert_allclose(energy.unary[0], np.array(losses) - losses[-1], rtol=1e-4)
    assert energy.unary[0][0] > 1e-3


def test_energies_of_inputs_are_for_one_example() -> None:
    x = torch.linspace(-1, 1, 40).reshape(20, 2)
    net = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.5, 2.0]]))
    q = probq.quantize(net, x, probq.Plan(weight=ladder(8), network_input=ladder(2, 8)), likelihood=Normal(0.5))
    for data in ([(x, torch.zeros(20, 1))], [(x[:7], torch.zeros(7, 1)), (x[7:], torch.zeros(13, 1))]):
        energy = criteria.hawq(q, data, probes=1000, progress=False)
        errors, scales = [], with_scales(q, data).inputs[".input"].scales().tolist()
        for scale, top in zip(scales, (1, 127), strict=True):
            rounded = scale * torch.floor(x / scale + 0.5).clamp(-top, top)
            errors.append(float((rounded - x).square().sum(1).mean()))
        curvature = (0.5**2 + 2.0**2) / 2 / 0.5**2  # mean of the diagonal of w w' / sd^2
        # z' w w' z / sd^2 = (w'w +- 2 w_1 w_2) / sd^2 errs by 2 |w_1 w_2| / w'w = 0.47 of it
        np.testing.assert_allclose(
            energy.unary[0][0], curvature / 2 * (errors[0] - errors[1]), rtol=5 * 0.47 / 1000**0.5
        )


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_negative_traces_are_told() -> None:
    class Saddle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(1, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return -(self.one(x) ** 2)  # far above its target, the loss falls in both directions

    torch.manual_seed(0)
    net = Saddle()
    with torch.no_grad():
        net.one.weight.fill_(0.3)
    x = torch.ones(4, 1)
    q = probq.quantize(net, x, Plan(weight=ladder(2, 8)), likelihood=Normal(1.0))
    with pytest.warns(UserWarning, match=r"1 of 1 traces of hawq are negative, the least .* of one\.weight"):
        criteria.hawq(q, [(x, torch.full((4, 1), -5.0))], probes=2, progress=False)


@pytest.mark.filterwarnings(
    "ignore:the network's own forward", "ignore:.*outside of all layers", "ignore:probq.lower will refuse"
)
def test_attention_has_second_derivatives_and_what_has_none_is_told() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            a, b, c = self.mix(x).chunk(3, -1)
            return self.head(F.scaled_dot_product_attention(a, b, c).mean(1))

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, *grads: Tensor) -> Any:
            return grads[0]

    class First(Attends):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(Once.apply(self.mix(x)[:, 0, :4]))

    x, y, plan = torch.rand(6, 5, 4), torch.arange(6) % 3, Plan(weight=ladder(2, 8))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*traces of hawq are negative")  # nobody trained it
        energy = criteria.hawq(probq.quantize(Attends(), x, plan), [(x, y)], probes=2, of="weights", progress=False)
    assert energy.unary[0][0] != 0
    for of in ("weights", "both"):
        with pytest.raises(ProbqError, match=r"second derivatives.*probq\.criteria\.mpqco"):
            criteria.hawq(probq.quantize(First(), x, plan), [(x, y)], probes=2, of=of, progress=False)


def test_bad_input_is_told() -> None:
    q = probq.quantize(nn.Linear(3, 3), X, Plan(weight=ladder(2, 8)))
    with pytest.raises(ProbqError, match=r"criteria\.hawq needs labels"):
        criteria.hawq(q, [X], progress=False)
    with pytest.raises(ProbqError, match="probes"):
        criteria.hawq(q, [(X, Y)], probes=0, progress=False)
