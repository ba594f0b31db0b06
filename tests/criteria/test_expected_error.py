"""Expected squares against draws from the law, and energies against gradients that torch.func takes at once."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import probq
from probq import Plan, Quantized, criteria
from probq.codebooks import ladder
from probq.criteria.expected_error import expected_squares
from probq.criteria.measuring.ready import with_scales
from probq.criteria.measuring.rounding_errors import weight_errors

X, Y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
DRAWS = 2000


def network(**options: Any) -> Quantized:
    torch.manual_seed(0)
    norm = nn.Identity() if "free_codes" in options else nn.BatchNorm1d(5)
    net = nn.Sequential(nn.Linear(4, 5), norm, nn.Tanh(), nn.Linear(5, 3))
    net(X)
    plan = Plan(weight=ladder(2, 4), input=ladder(3, 8, signed=True), **options)
    return with_scales(probq.quantize(net.eval(), X, plan), [(X, Y)])


@pytest.mark.parametrize(
    "options",
    [
        {"codes": 1},
        {"codes": 2, "spread": 0.3},
        {"codes": 2, "spread": 0.3, "gates": "channel"},
        {"codes": 4, "spread": 1.0},
        {"codes": 2, "free_codes": True},
    ],
)
def test_expected_squares_are_those_of_draws(options: dict[str, Any]) -> None:
    q = network(**options)
    torch.manual_seed(0)
    for logits in q.weights["3.weight"].code_logits.values():
        logits.data.normal_()  # no level so rare that draws miss it
    with q.evaluating(), torch.no_grad():
        exact = expected_squares(q, "3.weight")
        weight = q.net[3].weight
        for k in range(2):
            onehot = F.one_hot(torch.full(q.weights["3.weight"].gates, k), 2).float()
            rung = q.rung("3.weight", onehot)
            law = q.weights["3.weight"].law(q.location("3.weight", rung), rung)
            squares = (torch.stack([law.rsample() for _ in range(DRAWS)]) * rung.scale - weight).square()
            error = squares.std(0) / DRAWS**0.5
            assert (squares.mean(0) - exact[k]).abs().le(5 * error + 1e-5).all()
        nearest = weight_errors(q, "3.weight").square()
    assert torch.allclose(exact, nearest, atol=1e-6) == (options["codes"] == 1)


def test_codes_that_are_rounded_have_no_spread() -> None:
    q = network(codes=2, spread=0.3)
    q.rounding = True
    with q.evaluating():
        assert torch.equal(expected_squares(q, "0.weight"), weight_errors(q, "0.weight").square())


def test_energies_are_squares_times_squared_gradients() -> None:
    q = network(codes=2, spread=0.3)
    energy = criteria.expected_error(q, [(X[:3], Y[:3]), (X[3:], Y[3:])], progress=False)
    with q.evaluating(), torch.no_grad():
        squares = {name: expected_squares(q, name).double() for name in ("0.weight", "3.weight")}
    norm, last = q.net[1], q.net[3]
    gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    shift = ((q.net[0].bias - norm.running_mean) * gain + norm.bias).detach()
    zeros = torch.zeros(5)

    def log_prob(first: Tensor, second: Tensor, change: Tensor, x: Tensor, y: Tensor) -> Tensor:
        hidden = torch.tanh(F.linear(x, first, shift)) + change
        return F.linear(hidden, second, last.bias.detach()).log_softmax(-1).gather(-1, y[None]).sum()

    weights = ((q.net[0].weight * gain[:, None]).detach(), last.weight.detach())
    gradients = torch.func.vmap(torch.func.grad(log_prob, (0, 1, 2)), (None, None, None, 0, 0))(*weights, zeros, X, Y)
    rows = dict(zip(energy.names, energy.unary, strict=True))
    for name, gradient in zip(("0.weight", "3.weight"), gradients[:2], strict=True):
        costs = (squares[name] * gradient.double().square().mean(0)).sum((1, 2)).numpy() / 2
        np.testing.assert_allclose(rows[name], costs - costs[-1], rtol=1e-4, atol=1e-9)
    hidden, costs = torch.tanh(F.linear(X, weights[0], shift)), []
    for scale, top in zip(q.inputs["3.input"].scales().tolist(), (3, 127), strict=True):
        error = scale * torch.floor(hidden / scale + 0.5).clamp(-top, top) - hidden
        costs.append(float((error * gradients[2]).square().sum(1).mean()) / 2)
    np.testing.assert_allclose(rows["3.input"], [costs[0] - costs[1], 0], rtol=1e-4)


def test_tied_quantizers_have_the_sum() -> None:
    apart = criteria.expected_error(network(), [(X, Y)], of="weights", progress=False)
    tied = criteria.expected_error(network(tie_weight="all"), [(X, Y)], of="weights", progress=False)
    rows = dict(zip(apart.names, apart.unary, strict=True))
    np.testing.assert_allclose(tied.unary[0], rows["0.weight"] + rows["3.weight"], rtol=1e-6)
