"""Learned steps: their gradient against the formula of LSQ, orders that are known by hand, and what stays still."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import probq
from probq import Plan, ProbqError, Quantized, criteria
from probq.codebooks import ladder
from probq.criteria.limpq import FINE, START, _orders
from probq.criteria.measuring.still_copy import fix_rungs, still_copy
from probq.network.program.decided_codes import decided_output

X = torch.rand(60, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
BATCHES = [(X[:30], Y[:30]), (X[30:], Y[30:])]


def network(plan: Plan | None = None) -> Quantized:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(net.parameters(), 0.03)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X), Y).backward()
        optimizer.step()
    return probq.quantize(net, X, plan or Plan(weight=ladder(2, 4, 8), input=ladder(2, 4, 8, signed=False)))


def test_gradients_of_steps_are_those_of_learned_step_sizes() -> None:
    torch.manual_seed(0)
    x = torch.rand(7, 6)
    plan = Plan(weight=ladder(3, 8), network_input=ladder(3, 8, signed=False), scales="tensor")
    own = still_copy(probq.quantize(nn.Linear(6, 1, bias=False), x, plan), [(x, None)])
    for _, quantizer in own.named_quantizers():
        quantizer.multipliers = FINE
        quantizer.log2_scale.requires_grad_(True)
    step_w, step_x = 1 / 16, 3 / 32
    for name, step in ((".weight", step_w), (".input", step_x)):
        own.quantizer(name).log2_scale.data[0] = math.log2(step)
    fix_rungs(own, {".weight": 3, ".input": 3})
    decided_output(own, (x,)).sum().backward()

    def rounded(v: torch.Tensor, step: float, low: int, high: int) -> tuple[torch.Tensor, torch.Tensor]:
        u = v / step
        code = torch.floor(u + 0.5).clamp(low, high)
        return code * step, torch.where((u > low - 0.5) & (u < high + 0.5), code - u, code)  # value, d value / d step

    weight = own.net.weight.detach()
    w, dw = rounded(weight, step_w, -3, 3)
    a, da = rounded(x, step_x, 0, 7)
    expected = {".weight": step_w * (a.sum(0) * dw).sum(), ".input": step_x * (da * w).sum()}
    for name, value in expected.items():
        gradient = own.quantizer(name).log2_scale.grad
        assert float(gradient[0]) == pytest.approx(math.log(2) * float(value), rel=1e-4)
        assert gradient[1] == 0


def test_larger_numbers_keep_larger_steps() -> None:
    """A factor can move from one layer of a ReLU network to the next; the steps of weights and inputs follow it."""
    small, large = network(), network()
    with torch.no_grad():
        large.net[0].weight *= 4
        large.net[0].bias *= 4
        large.net[2].weight /= 4
    a, b = (criteria.limpq(q, BATCHES, progress=False) for q in (small, large))
    before, after = (dict(zip(e.names, e.unary, strict=True)) for e in (a, b))
    assert after["0.weight"][0] > 2 * before["0.weight"][0]
    assert after["2.input"][0] > 2 * before["2.input"][0]
    assert after["2.weight"][0] < before["2.weight"][0] / 2
    for row in (*a.unary, *b.unary):
        assert (np.diff(row) < 0).all()  # fewer levels take larger steps


def test_first_steps_are_alike_in_all_layers() -> None:
    energy = criteria.limpq(network(), BATCHES, steps=1, progress=False)
    for row in energy.unary:
        np.testing.assert_allclose(row, [START / b - START / 8 for b in (2, 4, 8)], rtol=0.15, atol=1e-6)


def test_alpha_weighs_weights_and_one_seed_gives_one_energy() -> None:
    q = network()
    state = {name: tensor.clone() for name, tensor in q.state_dict().items()}
    random = torch.get_rng_state()
    one, other = (criteria.limpq(q, BATCHES, steps=5, alpha=a, seed=3, progress=False) for a in (1.0, 2.0))
    for name, a, b in zip(one.names, one.unary, other.unary, strict=True):
        np.testing.assert_array_equal(b, (2 if name.endswith("weight") else 1) * a)
    assert all(torch.equal(tensor, state[name]) for name, tensor in q.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    different = criteria.limpq(q, BATCHES, steps=5, seed=4, progress=False)
    assert any((a != b).any() for a, b in zip(one.unary, different.unary, strict=True))


def test_of_leaves_the_others_on_their_widest_rung() -> None:
    energy = criteria.limpq(network(), BATCHES, steps=3, of="inputs", progress=False)
    rows = dict(zip(energy.names, energy.unary, strict=True))
    assert not rows["0.weight"].any()
    assert rows["2.input"][0] > 0


def test_tied_quantizers_have_the_sum() -> None:
    plan = Plan(weight=ladder(2, 8), input=ladder(8, signed=False), tie_weight="all")
    energy = criteria.limpq(network(plan), BATCHES, steps=1, progress=False)
    assert energy.names == ("0.weight",)
    np.testing.assert_allclose(energy.unary[0], [2 * (START / 2 - START / 8), 0], rtol=0.15)


def test_each_quantizer_passes_all_its_rungs() -> None:
    q = network(Plan(weight=ladder(2, 4, 8), input=ladder(4, 8, signed=False)))
    torch.manual_seed(0)
    drawn = list(_orders(q, ["0.weight", "2.input"]))
    assert sorted(widths["0.weight"] for widths in drawn) == [2, 4, 8]
    assert {widths["2.input"] for widths in drawn} == {4, 8}


def test_bad_input_is_told() -> None:
    q = network()
    with pytest.raises(ProbqError, match="needs labels"):
        criteria.limpq(q, [X], progress=False)
    with pytest.raises(ProbqError, match="steps"):
        criteria.limpq(q, BATCHES, steps=0, progress=False)
    with pytest.raises(ProbqError, match="alpha is a positive number"):
        criteria.limpq(q, BATCHES, alpha=-1, progress=False)
    with pytest.raises(ProbqError, match=r"0\.weight has one level at 0 bits"):
        criteria.limpq(network(Plan(weight=ladder(0, 2, 8))), BATCHES, progress=False)
