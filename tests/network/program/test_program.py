"""The model and the guide: the evidence lower bound by enumeration, and what Pyro's users expect of a program."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import Normal

import probq
from probq import Plan, Quantized
from probq.codebooks import ladder
from probq.network.distributions.codes import Codes
from probq.network.distributions.observation import Observation
from probq.network.program.substitution import substitute
from probq.testing import code_probabilities, enumerate_elbo, rung_probabilities, width_states, zoo

ZOO = {name: (net, example) for name, net, example in zoo()}
X = torch.tensor([[0.3, 0.9], [0.7, 0.2], [0.1, 0.5]])
Y = torch.tensor([0, 1, 1])
WIDE = {"spread": 0.5, "scales": "tensor"}


def tiny(codes: int = 2, temperature: float = 1.0, **options: Any) -> Quantized:
    """Six weights, three free widths: 2^3 width states, up to 2^6 code states each."""
    torch.manual_seed(4)
    net = (
        nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1, bias=False))
        if options.pop("normal", False)
        else (nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 2)))
    )
    plan = Plan(weight=ladder(1, 3), input=ladder(2, 4), network_input=ladder(5), codes=codes, **WIDE)
    q = probq.quantize(net, X, plan=plan, **options)
    with torch.no_grad():
        for k, (_, quantizer) in enumerate(q.named_quantizers()):
            quantizer.logits.fill_((0.4, -0.7, 0.9, 0.2)[k])
    q.temperature = temperature
    return q


def mean_and_error(draw: Any, n: int) -> tuple[float, float]:
    values = np.array([draw() for _ in range(n)])
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(n))


@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO, Trace_ELBO])
@pytest.mark.parametrize(
    ("codes", "temperature", "size"), [(2, 1.0, None), (2, 0.3, 30), (1, 1.0, None), (3, 0.5, None)]
)
def test_elbo_by_enumeration(elbo: type, codes: int, temperature: float, size: int | None) -> None:
    q = tiny(codes, temperature)
    exact = enumerate_elbo(q, X, Y, size)
    estimator = elbo()
    mean, error = mean_and_error(lambda: -estimator.loss(q.model, q.guide, X, Y, size), 150)
    assert error < 0.1 * abs(exact)
    assert abs(mean - exact) < 4 * error + 1e-4


def test_elbo_of_a_normal_likelihood_by_enumeration() -> None:
    q = tiny(normal=True, likelihood=lambda output: Normal(output[:, 0], 0.5))
    y = torch.tensor([0.2, -0.3, 0.9])
    exact = enumerate_elbo(q, X, y)
    estimator = TraceMeanField_ELBO()
    mean, error = mean_and_error(lambda: -estimator.loss(q.model, q.guide, X, y), 150)
    assert abs(mean - exact) < 4 * error + 1e-4


def test_divergences_are_exact_on_every_rung() -> None:
    """Each KL of a trace is the enumerated one given the drawn widths; nothing is estimated."""
    q = tiny()
    seen = set()
    for _ in range(40):
        guide = poutine.trace(q.guide).get_trace(X, Y)
        model = poutine.trace(poutine.replay(q.model, guide)).get_trace(X, Y)
        for name, quantizer in q.named_quantizers():
            if len(quantizer.ladder) > 1:
                site = f"{name}.width"
                p = np.array(rung_probabilities(quantizer))
                kl = torch.distributions.kl_divergence(guide.nodes[site]["fn"], model.nodes[site]["fn"])
                assert float(kl.detach()) == pytest.approx(float((p * np.log(p * len(p))).sum()), rel=1e-5)
        for name, weight in q.weights.items():
            rung = int(guide.nodes[f"{name}.width"]["value"].argmax())
            seen.add((name, rung))
            p = code_probabilities(weight, q.net.get_parameter(name), rung)
            kl = torch.distributions.kl_divergence(guide.nodes[f"{name}.code"]["fn"], model.nodes[f"{name}.code"]["fn"])
            assert float(kl.detach()) == pytest.approx(
                float((p[p > 0] * np.log(p[p > 0] * p.shape[1])).sum()), rel=1e-4
            )
    assert len(seen) == 4


def test_gradient_of_gates_through_the_code_divergence_is_unbiased() -> None:
    """d/dlogit of `E[KL(codes)]` alone, by the probabilities' own derivative, against the mean of the program's."""
    q = tiny(temperature=1.0)
    name = "0.weight"
    quantizer = q.weights[name]
    weight = q.net.get_parameter(name)
    divergence = []
    for rung in range(2):
        p = code_probabilities(quantizer, weight, rung)
        divergence.append(float((p[p > 0] * np.log(p[p > 0] * p.shape[1])).sum()))
    p1 = rung_probabilities(quantizer)[1]
    exact = p1 * (1 - p1) * (divergence[1] - divergence[0])
    draws = []
    for _ in range(400):
        onehot = quantizer.widths().rsample()
        rung = q.rung(name, onehot)
        kl = torch.distributions.kl_divergence(quantizer.law(weight, rung), quantizer.code_prior(rung, onehot, weight))
        draws.append(float(torch.autograd.grad(kl, quantizer.logits)[0]))
    # the relaxed gate's gradient is a biased one by design: same sign, same size
    assert np.sign(np.mean(draws)) == np.sign(exact)
    assert 0.5 < np.mean(draws) / exact < 2


def test_sites_are_named_after_modules_and_shaped_after_tensors() -> None:
    q = tiny()
    trace = poutine.trace(q.model).get_trace(X, Y)
    shapes = {
        name: tuple(site["value"].shape)
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and name != "data"
    }
    assert shapes == {
        "0.weight.width": (2,), "0.weight.code": (1, 2), "2.weight.width": (2,), "2.weight.code": (2, 1),
        "2.input.width": (2,), "obs": (3,),
    }  # fmt: skip
    guide = poutine.trace(q.guide).get_trace(X, Y)
    sampled = {name for name, site in guide.nodes.items() if site["type"] == "sample"}
    assert sampled == set(shapes) - {"obs"}
    assert trace.nodes["obs"]["is_observed"]


@pytest.mark.parametrize("gates", ["channel", "weight"])
def test_programs_with_many_gates_run(gates: str) -> None:
    plan = Plan(weight=ladder(0, 2, 4), gates=gates)
    q = probq.quantize(nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 2)), X, plan=plan)
    trace = poutine.trace(q.guide).get_trace(X, Y)
    assert trace.nodes["0.weight.width"]["value"].shape == (5, 1 if gates == "channel" else 2, 3)
    loss = TraceMeanField_ELBO().differentiable_loss(q.model, q.guide, X, Y)
    loss.backward()
    for quantizer in q.weights.values():
        assert quantizer.logits.grad is not None
        assert quantizer.logits.grad.abs().sum() > 0


def params(q: Quantized) -> Iterator[tuple[str, Tensor]]:
    return ((name, p.detach().clone()) for name, p in q.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("elbo", [TraceMeanField_ELBO, Trace_ELBO])
def test_svi_moves_every_parameter_and_leaves_no_store(elbo: type) -> None:
    q = tiny()
    before = dict(params(q))
    svi = SVI(q.model, q.guide, pyro.optim.Adam({"lr": 0.01}), elbo())
    losses = [svi.step(X, Y) for _ in range(20)]
    assert all(np.isfinite(losses))
    still = [name for name, p in params(q) if torch.equal(p, before[name])]
    assert still == []
    assert not pyro.get_param_store().keys()


def test_svi_lowers_the_loss() -> None:
    q = tiny()
    start = enumerate_elbo(q, X, Y)
    svi = SVI(q.model, q.guide, pyro.optim.Adam({"lr": 0.04}), TraceMeanField_ELBO())
    for _ in range(80):
        svi.step(X, Y)
    assert enumerate_elbo(q, X, Y) > start + 0.1


def test_an_elbo_module_holds_the_parameters() -> None:
    q = tiny()
    loss = TraceMeanField_ELBO()(q.model, q.guide)
    assert {id(p) for p in loss.parameters()} == {id(p) for p in q.parameters()}
    before = dict(params(q))
    optimizer = torch.optim.Adam([p for p in loss.parameters() if p.requires_grad], 0.01)
    for _ in range(10):
        optimizer.zero_grad()
        loss(X, Y).backward()
        optimizer.step()
    assert [name for name, p in params(q) if torch.equal(p, before[name])] == []


def test_predictive_draws_targets_from_the_posterior() -> None:
    q = tiny()
    drawn = Predictive(q.model, guide=q.guide, num_samples=300)(X)
    assert drawn["obs"].shape == (300, 3)
    assert drawn["0.weight.width"].reshape(300, -1).shape == (300, 2)
    exact = np.zeros(3)
    for rungs, p in width_states(q):
        laws = {n: code_probabilities(w, q.net.get_parameter(n), rungs[n]) for n, w in q.weights.items()}
        exact += p * sum_over_codes(q, rungs, laws)
    share = drawn["obs"].float().mean(0).numpy()
    assert (np.abs(share - exact) < 4 * np.sqrt(exact * (1 - exact) / 300)).all()


def sum_over_codes(q: Quantized, rungs: dict[str, int], laws: Any) -> np.ndarray:
    """`P(y = 1 | widths)` summed over all codes."""
    from probq.decisions.assignment import Assignment
    from probq.testing import decided_copy
    from probq.testing.oracles import _code_states

    result = np.zeros(3)
    widths = {name: quantizer.ladder.bits[rungs[name]] for name, quantizer in q.named_quantizers()}
    for codes, p in _code_states(laws):
        a = Assignment(widths, {n: c.reshape(q.weights[n].shape) for n, c in codes.items()}, q.layers)
        result += p * torch.softmax(decided_copy(q, a)(X.double()), -1)[:, 1].detach().numpy()
    return result


def test_prior_predictive_draws_codes_from_the_whole_codebook() -> None:
    q = tiny()
    drawn = Predictive(q.model, num_samples=400)(X)
    wide = drawn["0.weight.width"].reshape(400, 2)[:, 1] == 1
    assert abs(float(wide.float().mean()) - 0.5) < 0.1
    codes = drawn["0.weight.code"].reshape(400, 2)[wide]
    assert set(codes.reshape(-1).tolist()) == {-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0}


def test_a_model_without_targets_draws_them() -> None:
    trace = poutine.trace(tiny().model).get_trace(X)
    assert trace.nodes["obs"]["value"].shape == (3,)
    assert not trace.nodes["obs"]["is_observed"]


def test_batch_normalisation_trains_inside_the_program() -> None:
    net, example = ZOO["residual"]
    q = probq.quantize(net, example)
    q.train()
    before = q.net.norm1.running_mean.clone()
    loss = TraceMeanField_ELBO().differentiable_loss(q.model, q.guide, example, torch.tensor([0, 1, 2]))
    loss.backward()
    assert not torch.equal(q.net.norm1.running_mean, before)
    assert q.net.norm1.weight.grad.abs().sum() > 0
    assert q.net.stem.weight.grad.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_tied_weights_have_one_site() -> None:
    net, example = ZOO["tied embedding"]
    q = probq.quantize(net, example)
    names = [n for n, site in poutine.trace(q.model).get_trace(example).nodes.items() if site["type"] == "sample"]
    assert [n for n in names if n.endswith(".code")] == ["embed.weight.code", "mix.weight.code"]


def test_fixed_widths_and_rounding_remove_their_sites() -> None:
    q = tiny()
    fixed = q.at(q.mode())
    names = {n for n, s in poutine.trace(fixed.guide).get_trace(X).nodes.items() if s["type"] == "sample"}
    assert names == {"0.weight.code", "2.weight.code"}
    fixed.rounding = True
    assert not [s for s in poutine.trace(fixed.guide).get_trace(X).nodes.values() if s["type"] == "sample"]


def test_observations_of_images_and_sequences_are_events() -> None:
    law = Normal(torch.zeros(4, 3, 2), 2.0)
    y = torch.randn(4, 3, 2)
    assert torch.allclose(Observation(law).log_prob(y), law.log_prob(y).sum((1, 2)))
    column = Normal(torch.zeros(4, 1), 2.0)
    assert torch.allclose(Observation(column).log_prob(y[:, 0, 0]), column.log_prob(y[:, :1, 0]).squeeze(1))
    with pytest.raises(probq.ProbqError, match="do not fit outputs"):
        Observation(law).log_prob(torch.zeros(4, 5))


def test_substitute_restores_everything_even_after_an_error() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    weight = net[0].weight.detach().clone()
    out = substitute(
        net, {"0.weight": torch.eye(2), "0.bias": torch.zeros(2)}, {"0": lambda x: x + 1}, {"1": lambda x: x * 2}, X
    )
    assert torch.equal(out, (X + 1) * 2)
    with pytest.raises(ZeroDivisionError):
        substitute(net, {}, {"0": lambda x: x / (1 // 0)}, {}, X)
    assert torch.equal(net[0].weight, weight)
    assert not net[0]._forward_pre_hooks
    assert not net[1]._forward_hooks


@pytest.mark.parametrize("gates", ["tensor", "channel", "weight"])
def test_the_codes_divergence_tells_each_gate_what_every_rung_costs(gates):
    plan = probq.Plan(weight=ladder(0, 1, 2, 4), gates=gates, spread=0.3, estimator=probq.estimators.MeanGradient())
    q = probq.quantize(nn.Sequential(nn.Linear(6, 5)), torch.randn(8, 6), plan=plan)
    quantizer, location = q.weights["0.weight"], q.location("0.weight").detach()
    onehot = quantizer.widths().rsample()
    onehot.retain_grad()
    quantizer.code_prior(quantizer.rung(onehot.detach().argmax(-1)), onehot, location).gate_term.backward()
    scales = quantizer.scales().detach()
    for k, rung in enumerate(quantizer.ladder.rungs):
        law = Codes(location, scales[k], rung, quantizer.log_spread.exp())
        probs = law.window()[1].exp()
        each = math.log(rung.count) + torch.special.xlogy(probs, probs).sum(-1)
        shared = each.sum() if gates == "tensor" else each.sum(1, keepdim=True) if gates == "channel" else each
        torch.testing.assert_close(onehot.grad[..., k], shared.detach(), rtol=1e-4, atol=1e-4)
