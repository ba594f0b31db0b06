"""Rules by hand algebra, and options that cannot be. What all of them keep is in `tests/conformance`."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from small_fits import X, Y, network

import probq
from probq import Budget, ProbqError, rules
from probq.training.svi.budget_constraint import BudgetConstraint


def test_the_limit_is_ramped_down_geometrically() -> None:
    state = rules.DualAscent(ramp=0.5).begin(1000.0, 10.0, steps=8)
    assert [state.limit_at(k) for k in range(6)] == pytest.approx(
        [1000 ** (1 - d) * 10**d for d in (0.25, 0.5, 0.75, 1, 1, 1)]
    )
    assert rules.PID(ramp=0.5).begin(1.0, 10.0, steps=8).limit_at(0) == pytest.approx(10)


def test_dual_ascent_by_hand() -> None:
    state = rules.DualAscent(rate=0.5, penalty=3.0).begin(10.0, 10.0, steps=1)
    gap = torch.tensor(math.log(2), requires_grad=True)
    g = math.log(2)
    assert float(state.term(gap, 0).detach()) == pytest.approx(1.5 * g**2)
    assert state.multiplier == pytest.approx(0.5 * g)
    term = state.term(gap, 0)
    assert float(term.detach()) == pytest.approx(0.5 * g**2 + 1.5 * g**2)
    assert float(torch.autograd.grad(term, gap)[0]) == pytest.approx(0.5 * g + 3 * g)
    below = torch.tensor(-0.2, requires_grad=True)  # a step below the limit the weight falls at once, to 0 at most
    assert float(torch.autograd.grad(state.term(below, 0), below)[0]) == pytest.approx(g - 0.6)
    far = torch.tensor(-0.3, requires_grad=True)
    assert float(torch.autograd.grad(state.term(far, 0), far)[0]) == 0
    state.term(torch.tensor(-9.0), 0)
    assert state.multiplier == 0


def test_augmented_lagrangian_by_hand() -> None:
    rule = rules.AugmentedLagrangian(rounds=2, penalty=2.0, growth=3.0, most=5.0)
    state = rule.begin(10.0, 10.0, steps=4)
    gap = torch.tensor(0.5, requires_grad=True)
    first = state.term(gap, 0)
    assert float(first.detach()) == pytest.approx((2 * 0.5) ** 2 / 4)
    assert float(torch.autograd.grad(first, gap)[0]) == pytest.approx(2 * 0.5)
    state.term(torch.tensor(0.3), 1)
    assert state.multiplier == pytest.approx(2 * 0.4)
    assert state.penalty == 2.0  # nothing to compare the first round with
    second = state.term(gap, 2)
    assert float(second.detach()) == pytest.approx(((0.8 + 2 * 0.5) ** 2 - 0.8**2) / 4)
    state.term(torch.tensor(0.3), 3)
    assert state.multiplier == pytest.approx(0.8 + 2 * 0.4)
    assert state.penalty == 5.0  # no better than the round before: 3 times larger, at most 5
    below = torch.tensor(-2.0, requires_grad=True)
    flat = state.term(below, 4)
    assert float(flat.detach()) == pytest.approx(-(1.6**2) / 10)
    assert float(torch.autograd.grad(flat, below)[0]) == 0


def test_the_controller_by_hand() -> None:
    state = rules.PID(kp=2.0, ki=0.1, kd=3.0, smooth=0.5, delay=1).begin(10.0, 10.0, steps=1)
    gap = torch.tensor(0.4, requires_grad=True)
    term = state.term(gap, 0)
    assert state.multiplier == pytest.approx(2 * 0.4 + 0.1 * 0.4)
    assert float(torch.autograd.grad(term, gap)[0]) == pytest.approx(state.multiplier)
    state.term(torch.tensor(0.8), 1)
    assert state.multiplier == pytest.approx(2 * 0.6 + 0.1 * 1.2 + 3 * (0.6 - 0.4))
    state.term(torch.tensor(0.0), 2)
    assert state.multiplier == pytest.approx(2 * 0.3 + 0.1 * 1.2)  # no brake while the gap shrinks
    state.term(torch.tensor(-9.0), 3)
    assert (state.multiplier, state.integral) == (0, 0)


SIZES = {
    rules.gradient: lambda g, w: abs(g),
    rules.gradient_plus_magnitude: lambda g, w: abs(g) + abs(w),
    rules.gradient_times_magnitude: lambda g, w: abs(g) * abs(w),
}


@pytest.mark.parametrize("direction", SIZES, ids=lambda direction: direction.__name__)
def test_directions_by_their_formulas(direction: Any) -> None:
    grad, magnitude = torch.tensor([[0.5, -2.0], [0.1, 4.0]]), torch.tensor([[3.0], [0.2]])
    size = np.array(
        [[SIZES[direction](float(g), float(w)) for g in row] for row, w in zip(grad, magnitude, strict=True)]
    )
    np.testing.assert_allclose(direction(grad, magnitude, True), 1 / size, rtol=1e-6)
    np.testing.assert_allclose(direction(grad, magnitude, False), -size, rtol=1e-6)


@pytest.mark.parametrize("gates", ["tensor", "channel", "weight"])
@pytest.mark.parametrize("exceeded", [True, False])
def test_gates_move_by_their_direction(gates: str, exceeded: bool) -> None:
    q = network(gates)
    mover = rules.ConstraintGuided(rules.gradient_times_magnitude, travel=10.0, smooth=0.0).mover(q, steps=100)
    seen = {name: torch.randn(6, 4) for name in ("2.input", "4.input")}
    for name, x in seen.items():
        q.quantizer(name)(x, torch.tensor([1.0, 0.0]))
    before = {name: z.logits.detach().clone() for name, z in q.named_quantizers() if z.free}
    assert before.keys() == {"0.weight", "2.weight", "4.weight", *seen}
    ways = {}
    for name in before:
        grad = torch.rand_like(before[name]) - 0.5
        q.quantizer(name).logits.grad = grad
        values = seen[name] if name in seen else q.net.get_parameter(name).detach()
        size = grad.abs().numpy() * magnitude(values.abs().numpy(), () if name in seen else q.quantizer(name).gates)
        ways[name] = 1 / size if exceeded else -size
    typical = math.exp(np.mean([np.log(np.abs(way)).mean() for way in ways.values()]))
    mover.move(exceeded, 0)
    low, high = (0.1, 4) if exceeded else (-4, 0)
    for name, way in ways.items():
        expected = np.clip(before[name].numpy() - 0.1 * np.clip(way / typical, low, high), -3, 3)
        np.testing.assert_allclose(q.quantizer(name).logits.detach(), expected, rtol=1e-4, atol=1e-6)
        assert q.quantizer(name).logits.grad is None
    mover.close()
    assert not any(module._forward_pre_hooks for module in q.modules())


def magnitude(sizes: np.ndarray, gates: tuple[int, ...]) -> np.ndarray:
    """Mean of what shares a gate, with an axis for the rungs."""
    axes = tuple(k for k, n in enumerate(gates) if n == 1)
    return sizes.mean(axis=axes, keepdims=True)[..., None] if gates else np.array([sizes.mean()])


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_gates_that_move_down_to_the_end_all_close(steps: int) -> None:
    q = network("channel")
    mover = rules.ConstraintGuided().mover(q, steps)
    for step in range(steps):
        for _, quantizer in q.named_quantizers():
            quantizer.logits.grad = torch.randn_like(quantizer.logits).exp()
        mover.move(True, step)
    assert all((quantizer.logits < 0).all() for _, quantizer in q.named_quantizers())
    mover.move(False, steps - 1)  # nor does any open again
    assert all((quantizer.logits < 0).all() for _, quantizer in q.named_quantizers())


def test_the_hard_cost_is_that_of_the_most_probable_widths() -> None:
    q = network()
    constraint = BudgetConstraint(q, Budget(limit=500.0))
    modes = {n: quantizer.ladder.bits[int(quantizer.probs().argmax())] for n, quantizer in q.named_quantizers()}
    assert constraint.hard() == pytest.approx(probq.cost.total(q.layers, modes))


BAD: dict[str, Any] = {
    "rule is one of": {"rule": "PID"},
}


@pytest.mark.parametrize(("message", "options"), BAD.items(), ids=BAD)
def test_options_of_a_fit_that_cannot_be_are_refused(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(ProbqError, match=message):
        probq.fit(network(), [(X, Y)], progress=False, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rules.DualAscent(ramp=2),
        lambda: rules.DualAscent(rate=0),
        lambda: rules.AugmentedLagrangian(rounds=0),
        lambda: rules.PID(kp=-1),
        lambda: rules.ConstraintGuided(travel=math.inf),
    ],
)
def test_options_of_a_rule_that_cannot_be_are_refused(make: Any) -> None:
    with pytest.raises(ProbqError, match=r"is a (share|number)"):
        make()
