"""The opened float network against the user's own, and errors and gradients against those taken by hand."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import probq
from probq import Plan, ProbqError, Quantized, criteria
from probq.codebooks import ladder
from probq.criteria.measuring.example_gradients import example_gradients
from probq.criteria.measuring.float_network import log_probs, opened
from probq.criteria.measuring.ready import with_scales
from probq.criteria.measuring.rounding_errors import input_errors, members, squared_errors, weight_errors
from probq.network.program.decided_codes import decided_output
from probq.testing.zoo import zoo

PLAN = Plan(weight=ladder(2, 4, 8), input=ladder(4, 8, signed=True))
X = torch.randn(12, 2, 5, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


class Mixed(nn.Module):
    """A convolution with a normalisation that is folded, an activation in place, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
        self.twice, self.head = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)), inplace=True).mean((2, 3))
        return self.head(F.relu(self.twice(F.relu(self.twice(x)))))


def mixed(plan: Plan = PLAN) -> Quantized:
    torch.manual_seed(0)
    net = Mixed()
    for _ in range(30):
        net(X)  # running statistics
    with torch.no_grad():
        net.norm.weight.copy_(torch.tensor([0.7, -1.3, 2.1]))
        net.norm.bias.uniform_(-1, 1)
    return with_scales(probq.quantize(net.eval(), X, plan), [(X, Y)])


@pytest.mark.filterwarnings("ignore")  # what quantize says of awkward networks
@pytest.mark.parametrize("name", [name for name, _, _ in zoo()])
def test_the_opened_network_is_the_float_one(name: str) -> None:
    net, example = next((net, example) for own, net, example in zoo() if own == name)
    q = probq.quantize(net.eval(), example, Plan(weight=ladder(2, 8), input=ladder(4, 8, signed=True)))
    names = [name for name, _ in q.named_quantizers()]
    state = {key: value.clone() for key, value in q.state_dict().items()}
    with torch.no_grad(), q.evaluating():
        run = opened(q, example, names)
        expected = net(*example) if isinstance(example, tuple) else net(example)
    torch.testing.assert_close(run.output, expected, rtol=1e-4, atol=1e-5)
    assert set(run.values) == set(names)
    assert all(torch.equal(value, state[key]) for key, value in q.state_dict().items())


def test_gradients_of_examples_are_those_of_a_network_written_out() -> None:
    q = mixed()
    net: Any = q.net
    names = [name for name, _ in q.named_quantizers()]
    found = list(example_gradients(q, [(X[:5], Y[:5]), (X[5:], Y[5:])], names, progress=False))
    gain = (net.norm.weight / (net.norm.running_var + net.norm.eps).sqrt()).detach()
    shift = (net.norm.bias - net.norm.running_mean * gain + gain * net.conv.bias).detach()
    for x, y, one in zip(X.split(1), Y.split(1), found, strict=True):
        conv = (net.conv.weight * gain.reshape(3, 1, 1, 1)).detach().requires_grad_(True)
        weight, head = (m.weight.detach().clone().requires_grad_(True) for m in (net.twice, net.head))
        x = x.clone().requires_grad_(True)
        first = F.relu(F.conv2d(x, conv, shift)).mean((2, 3))
        second = F.relu(F.linear(first, weight, net.twice.bias.detach()))
        last = F.relu(F.linear(second, weight, net.twice.bias.detach()))
        leaves = {"conv.weight": [conv], "twice.weight": [weight], "head.weight": [head], "conv.input": [x]}
        leaves |= {"twice.input": [first, second], "head.input": [last]}
        log_prob = -F.cross_entropy(F.linear(last, head, net.head.bias.detach()), y)
        flat = [tensor for tensors in leaves.values() for tensor in tensors]
        grads = iter(torch.autograd.grad(log_prob, flat))
        for name, tensors in leaves.items():
            for place, tensor in enumerate(tensors):
                torch.testing.assert_close(one.values[name][place], tensor.detach(), rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(one.gradients[name][place], next(grads), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("gates", "profile"),
    [("tensor", "shift"), ("channel", "shift"), ("weight", "shift"), ("tensor", "dyadic"), ("channel", "dyadic")],
)
def test_errors_are_those_of_what_a_decided_network_runs_with(gates: Any, profile: Any) -> None:
    q = mixed(Plan(weight=ladder(0, 2, 8), gates=gates, profile=profile, network_input=ladder(2, 4, 8, signed=True)))
    net: Any = q.net
    gain = (net.norm.weight / (net.norm.running_var + net.norm.eps).sqrt()).detach()
    plain = {"conv": net.conv.weight.detach() * gain.reshape(3, 1, 1, 1), "twice": net.twice.weight.detach()}
    with q.evaluating():
        errors = {name: weight_errors(q, f"{name}.weight") for name in plain}
    rounded = input_errors(q, "conv.input", X)
    seen: dict[str, Tensor] = {}

    def catch(module: Any, args: Any, output: Any) -> None:
        seen.setdefault(module.label, module.weight.detach().clone())
        seen.setdefault(f"{module.label} input", args[0].detach().clone())

    for name in plain:
        module = net.get_submodule(name)
        module.label = name
        module.register_forward_hook(catch)
    for place in range(3):
        for quantizer in (*q.weights.values(), *q.inputs.values()):
            quantizer.fix(quantizer.ladder.bits[min(place, len(quantizer.ladder) - 1)])
        seen.clear()
        with torch.no_grad(), q.evaluating():
            decided_output(q, (X,))
        for name, weight in plain.items():
            torch.testing.assert_close(errors[name][place], seen[name] - weight, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(rounded[place], seen["conv input"] - X, rtol=1e-4, atol=1e-6)


def test_squares_are_summed_over_all_calls_of_an_example() -> None:
    q = mixed()
    names = ["twice.input", "twice.weight"]
    found = squared_errors(q, [(X[:5], None), (X[5:], None)], names, progress=False)
    with torch.no_grad(), q.evaluating():
        first, second = opened(q, X, names).values["twice.input"]
        weight = weight_errors(q, "twice.weight")
    joined = torch.cat([first, second])
    errors = []
    for step, top in zip(q.inputs["twice.input"].scales().tolist(), (7, 127), strict=True):
        errors.append((step * torch.floor(joined / step + 0.5).clamp(-top, top) - joined).square().sum().item())
    np.testing.assert_allclose(found["twice.input"].errors, np.array(errors) / 12, rtol=1e-5)
    assert found["twice.input"].norm == pytest.approx(float(joined.square().sum()) / 12, rel=1e-5)
    assert (found["twice.input"].count, found["twice.weight"].count) == (6, 9)
    np.testing.assert_allclose(found["twice.weight"].errors, weight.square().sum((1, 2)), rtol=1e-5)


def test_tied_quantizers_are_members_of_one_site() -> None:
    q = mixed(Plan(weight=ladder(2, 8), input=ladder(4, 8), tie_input="all"))
    assert members(q, "inputs") == {"twice.input": ["twice.input", "head.input"]}
    assert list(members(q, "weights")) == ["conv.weight", "twice.weight", "head.weight"]


def test_targets_that_are_not_given_are_drawn() -> None:
    q = probq.quantize(nn.Linear(2, 2), torch.rand(4, 2), PLAN)
    torch.manual_seed(0)
    output = torch.tensor([[0.0, np.log(3.0)]]).repeat(4000, 1)
    drawn = log_probs(q, output, None).exp()
    assert float((drawn > 0.5).float().mean()) == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 4000) ** 0.5)
    assert set(drawn.round(decimals=4).tolist()) == {0.25, 0.75}


def test_what_does_not_run_on_one_example_is_told() -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).squeeze()

    q = probq.quantize(Squeezed(), torch.rand(4, 2), PLAN, likelihood=probq.likelihoods.Normal(1.0))
    with pytest.raises(ProbqError, match=r"no axis of examples.*squeeze\(-1\)"):
        list(example_gradients(q, [(torch.rand(4, 2), torch.rand(4))], ["layer.weight"], progress=False))

    class NoDraws(torch.distributions.Normal):
        def sample(self, sample_shape: Any = ()) -> Tensor:
            raise NotImplementedError

    q = probq.quantize(Squeezed(), torch.rand(4, 2), PLAN, likelihood=lambda output: NoDraws(output, 1.0))
    with pytest.raises(ProbqError, match="NoDraws, cannot draw targets"):
        log_probs(q, torch.zeros(4), None)


def test_a_layer_that_does_not_run_is_told() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) if len(x) == 3 else self.two(self.one(x))

    q = probq.quantize(Skips(), torch.rand(4, 2), PLAN)
    with pytest.raises(ProbqError, match=r"two\.input rounds nothing"), q.evaluating():
        opened(q, torch.rand(3, 2), ["two.input"])


@pytest.mark.parametrize("criterion", [criteria.loss, criteria.hawq, criteria.mpqco])
def test_outputs_that_lose_the_axis_of_one_example_are_told(criterion: Any) -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu()).squeeze()

    x, y = torch.rand(9, 4), torch.rand(9)
    q = probq.quantize(Squeezed(), x, likelihood=probq.likelihoods.Normal())
    with pytest.raises(ProbqError, match="no axis of examples where it runs on one example; let it keep"):
        criterion(q, [(x[:8], y[:8]), (x[8:], y[8:])], progress=False)
