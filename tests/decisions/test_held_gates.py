"""Searches at 0 bits that would cut a network in two, against the same searches on ladders without that rung."""

import pytest
import torch
from torch import Tensor, nn

import probq
from probq import Budget, Plan, priors
from probq.codebooks import ladder
from probq.decisions.held_gates import hold_gates
from probq.network.distributions.widths import Widths
from probq.network.quantizers.base import HELD, OPEN
from probq.rules import ConstraintGuided


class Around(nn.Module):
    """Two layers around whose first one a path leads."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return three numbers."""
        return self.head(x + torch.relu(self.inner(x)))


X, Y = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3
ZERO = Plan(weight=ladder(0, 2, 8), input=ladder(8, signed=True))


def network(plan: Plan = ZERO) -> probq.Quantized:
    torch.manual_seed(0)
    return probq.quantize(Around(), X, plan)


def closed(q: probq.Quantized, name: str = "head.weight") -> float:
    """Return the probability of 0 bits."""
    return float(q.quantizer(name).probs().detach()[0])


@pytest.mark.parametrize("rule", [probq.rules.DualAscent(), ConstraintGuided()], ids=["ascent", "guided"])
def test_a_search_leaves_out_what_would_cut_the_network(rule: probq.rules.Rule) -> None:
    q = network()
    assert closed(q) == pytest.approx(1 / (1 + torch.e**OPEN))
    probq.fit(q, [(X, Y)] * 4, Budget(percent=1.0), epochs=3, rule=rule, progress=False, seed=0, trials=0)
    assert closed(q) == 0.0
    assert 0 < closed(q, "inner.weight") < 1
    assert q.mode(Budget(percent=1.0)).widths["head.weight"] == 2
    assert all(a.widths["head.weight"] for a in q.sample(50, Budget(percent=1.0), seed=0))


def test_what_is_measured_leaves_it_out_as_well() -> None:
    q, budget, data = network(), Budget(percent=4.0), [(X, Y)]
    probq.fit(q, data * 4, budget, 4, validation=data, evaluations=20, progress=False, seed=0)
    assert closed(q) == 0.0
    assert q.energy is not None
    assert q.energy.unary[q.energy.names.index("head.weight")][0] == HELD
    assert q.mode(budget).widths["head.weight"]
    assert all(a.widths["head.weight"] for a in q.sample(50, budget, seed=0))
    again = probq.decide(q, budget, data, evaluations=20, progress=False)
    assert again.widths["head.weight"]
    assert closed(q) == 0.0


def test_the_other_rungs_have_the_law_that_they_have_without_that_one() -> None:
    logits = torch.tensor([0.7, -0.4])
    held = Widths(torch.cat([torch.tensor([HELD]), logits]).requires_grad_())
    torch.testing.assert_close(held.probs[1:], Widths(logits).probs, rtol=0, atol=0)
    (slope,) = torch.autograd.grad(held.entropy() + held.rsample()[1], held.logits)
    assert slope[0] == 0
    assert bool(slope.isfinite().all())


def test_it_stays_where_the_plan_or_the_temperature_asks_or_the_budget_leaves_no_choice() -> None:
    asked = Plan(weight=ladder(0, 2, 8), input=ladder(8, signed=True), width_prior=priors.Geometric(0.5))
    for plan, temperature, budget, held in (
        (ZERO, 0.001, None, True),
        (ZERO, 0.001, Budget(percent=2.0), True),
        (asked, 0.001, None, False),
        (ZERO, 1.0, None, False),
        (ZERO, 0.001, Budget(percent=1e-9), False),
    ):
        q = network(plan)
        q.temperature = temperature
        hold_gates(q, budget)
        assert (closed(q) == 0) is held
        assert closed(q, "inner.weight") > 0
    q = network()
    hold_gates(q, None)
    q.temperature = 1.0
    hold_gates(q, None)
    assert q.quantizer("head.weight").logits.tolist() == [OPEN, OPEN]
